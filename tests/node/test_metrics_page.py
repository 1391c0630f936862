"""The page of metrics: requests that wait at the same time share it, and one that comes later gets a new one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count

import pytest

from dss_project import metrics_page
from dss_project.metrics_page import MetricsPage


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsPage]:
    """Its pages are 1, 2, …"""
    numbers = count(1)
    monkeypatch.setattr(metrics_page, "generate_latest", lambda: b"%d" % next(numbers))
    return MetricsPage()


async def test_requests_that_wait_share_a_page(pages: MetricsPage) -> None:
    assert [page.body for page in await asyncio.gather(*(pages() for _ in range(5)))] == [b"1"] * 5
    assert (await pages()).body == b"2"


async def test_a_request_that_comes_when_a_page_is_made_gets_the_next(
    pages: MetricsPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[asyncio.Task[object]] = []
    make = metrics_page.generate_latest

    def arrive() -> bytes:
        if not later:
            later.append(asyncio.create_task(pages()))
        return make()

    monkeypatch.setattr(metrics_page, "generate_latest", arrive)
    assert (await pages()).body == b"1"
    assert (await later[0]).body == b"2"  # type: ignore[attr-defined]


async def test_a_request_that_is_given_up_does_not_end_the_others(pages: MetricsPage) -> None:
    first, second = (asyncio.create_task(pages()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).body == b"1"
    assert first.cancelled()
