"""What the kombu transport makes of refusals, of the end of its client, and of acks, without a node."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("kombu")

from kombu import Connection
from kombu.exceptions import OperationalError

from dss_client.errors import (
    ClientClosed,
    DssError,
    Forbidden,
    InternalError,
    Invalid,
    NotFound,
    OverLimit,
    Refused,
    TooLarge,
    Unavailable,
    UnknownOutcome,
)
from dss_client.portal import Portal
from dss_kombu import fetching
from dss_kombu.fetching import Fetcher
from dss_kombu.link import Link
from dss_kombu.options import Options
from dss_kombu.publishing import BATCH_MAX, Publication, Publisher


class Calls:
    """In the place of a client: answers calls of `queue.publish`, and keeps which numbers each one had."""

    def __init__(self, answer: Callable[[list[int]], DssError | None] = lambda numbers: None) -> None:
        self.answer = answer
        self.made: list[list[int]] = []
        #: calls with this many messages are never answered
        self.held = 0
        self.is_held = asyncio.Event()

    def _running(self) -> Calls:
        return self

    async def call(self, operation: str, fields: dict[str, Any], repeat: Any) -> dict[str, Any]:
        numbers = [one["value"] for one in fields.get("messages", [fields])]
        self.made.append(numbers)
        if len(numbers) == self.held:
            self.is_held.set()
            await asyncio.Event().wait()
        error = self.answer(numbers)
        if error is not None:
            raise error
        return {}


def publications(count: int) -> list[Publication]:
    return [Publication("jobs", {"value": number}, 1) for number in range(count)]


async def outcomes(publisher: Publisher, batch: list[Publication]) -> list[BaseException | None]:
    for one in batch:
        publisher.add(one)
    await publisher.flush()
    return [one.stored.exception(0) for one in batch]


def repeated(error: Refused) -> Refused:
    error.was_repeated = True
    return error


@pytest.mark.parametrize(
    "error",
    [
        InternalError("a fault"),
        repeated(OverLimit("full")),
        repeated(Invalid("wrong")),
        OverLimit("full"),
        Forbidden("not from here"),
        NotFound("no topic"),
    ],
    ids=lambda error: f"{error.code}{'-repeated' if error.was_repeated else ''}",
)
async def test_messages_are_sent_once_if_they_may_be_stored_or_none_of_them_is_the_reason(error: Refused) -> None:
    calls = Calls(lambda numbers: error)
    found = await outcomes(Publisher(calls), publications(BATCH_MAX))  # type: ignore[arg-type]
    assert calls.made == [list(range(BATCH_MAX))]
    assert found == [error] * BATCH_MAX


@pytest.mark.parametrize("kind", [Invalid, TooLarge])
async def test_the_message_that_is_refused_is_found_in_few_calls(kind: type[Refused]) -> None:
    stored: Counter[int] = Counter()

    def answer(numbers: list[int]) -> DssError | None:
        if 70 in numbers:
            return kind("this one")
        stored.update(numbers)
        return None

    calls = Calls(answer)
    found = await outcomes(Publisher(calls), publications(BATCH_MAX))  # type: ignore[arg-type]
    assert [number for number, error in enumerate(found) if error is not None] == [70]
    assert isinstance(found[70], kind)
    assert stored == Counter(number for number in range(BATCH_MAX) if number != 70)
    assert len(calls.made) <= 1 + 2 * 7


async def test_the_outcome_of_a_cancelled_call_is_not_known_and_what_was_not_sent_is_not_stored() -> None:
    calls = Calls(lambda numbers: Invalid("one of them"))
    calls.held = 2
    publisher = Publisher(calls)  # type: ignore[arg-type]
    batch = publications(4)
    for one in batch:
        publisher.add(one)
    await calls.is_held.wait()
    (task,) = publisher._calls
    task.cancel()
    await asyncio.wait({task})
    assert calls.made == [[0, 1, 2, 3], [0, 1]]
    assert [type(one.stored.exception(0)) for one in batch] == [UnknownOutcome] * 2 + [ClientClosed] * 2


async def test_an_ack_call_names_a_message_once() -> None:
    """The second delivery has another receipt. In one call with the first one, only one of them would count."""
    made: list[list[tuple[str, str]]] = []

    class Client:
        def _running(self) -> Client:
            return self

        async def call(self, operation: str, fields: dict[str, Any], repeat: Any) -> dict[str, Any]:
            made.append(list(zip(fields["msg_ids"], fields["receipts"], strict=True)))
            return {}

    client, directory = cast("Any", Client()), cast("Any", None)
    fetcher = Fetcher(client, directory, 30, lambda deliveries: None, lambda queue: None)
    for msg_id, receipt in [("1-0", "second"), ("2-0", "first"), ("1-0", "first")]:
        message: Any = SimpleNamespace(topic="t", group="g", msg_id=msg_id, receipt=receipt)
        fetcher._ack(message)
    await fetcher.close()
    assert made == [[("1-0", "second"), ("2-0", "first")], [("1-0", "first")]]


async def test_takes_that_fail_are_repeated_after_pauses_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many consumers whose calls fail together do not come back at the same moment."""
    failures: list[int] = []
    is_over = asyncio.Event()

    def pause_s(count: int) -> float:
        failures.append(count)
        if len(failures) == 2:
            is_over.set()
        return 0.0

    async def take(free: int) -> None:
        raise Unavailable("no node answers")

    monkeypatch.setattr(fetching, "pause_s", pause_s)
    fetcher = Fetcher(cast("Any", None), cast("Any", None), 30, lambda deliveries: None, lambda queue: None)
    monkeypatch.setattr(fetcher, "_take", take)
    await fetcher.add(cast("Any", SimpleNamespace(queue="q")))
    async with asyncio.timeout(60):
        await is_over.wait()
    await fetcher.close()
    assert failures[:2] == [1, 2]


def test_a_publisher_does_not_wait_for_a_thread_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link({"urls": "http://127.0.0.1:9"}, Options())
    link.post(lambda: None)
    is_accepted = threading.Event()
    # As a loop that is closed after its last turn.
    monkeypatch.setattr(Portal, "post", lambda self, function, *arguments: is_accepted.set())
    outcome: Future[None] = Future()

    def publish() -> None:
        try:
            link.publish("jobs", 1)
        except DssError as error:
            outcome.set_exception(error)

    threading.Thread(target=publish, daemon=True).start()
    is_accepted.wait()
    link.close()
    assert isinstance(outcome.exception(20), ClientClosed)
    with pytest.raises(ClientClosed):
        link.publish("jobs", 2)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(UnknownOutcome("no answer"), 1), (InternalError("of a node"), 1), (OverLimit("full"), 3), (Unavailable("away"), 3)],
)
def test_kombu_repeats_a_publish_only_if_it_had_no_effect(
    error: Exception, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_ensure_connection", "collect"):
        monkeypatch.setattr(Connection, name, lambda *_, **__: None)
    monkeypatch.setattr(Connection, "default_channel", None)
    made = 0

    def publish() -> None:
        nonlocal made
        made += 1
        raise error

    with Connection("dss://127.0.0.1:1//") as connection:
        producer = SimpleNamespace(revive=lambda channel: None)
        with pytest.raises((type(error), OperationalError)):
            connection.ensure(producer, publish, max_retries=2, interval_start=0, interval_step=0)()
    assert made == attempts
