"""OpenTelemetry spans of calls, publications and handled messages."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dss_client import AsyncClient, Client, LockHeld, WrongUse
from dss_dev.local_cluster import LocalCluster

Spans = Callable[[], dict[str, ReadableSpan]]


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """OpenTelemetry accepts one provider for the process."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[Spans]:
    """The spans that have ended, by name."""
    exporter.clear()
    yield lambda: {span.name: span for span in exporter.get_finished_spans()}
    exporter.clear()


async def test_a_call_is_a_child_of_the_current_span(node: Any, make_client: Callable[..., AsyncClient], spans: Spans) -> None:
    node.answers["cache.put"] = {"ok": True, "version": 1, "state": "M", "index": 1}
    client = make_client(node, traces=True)
    with trace.get_tracer("test").start_as_current_span("request"):
        await client.cache.put("page", 1)
    call, request = spans()["cache.put"], spans()["request"]
    assert call.parent is not None
    assert call.parent.span_id == request.context.span_id
    assert call.attributes == {
        "rpc.system": "dss",
        "rpc.method": "cache.put",
        "dss.key": "page",
        "server.address": "127.0.0.1",
        "server.port": node.port,
    }
    # What the client does by itself has no spans.
    assert set(spans()) == {"cache.put", "request"}


async def test_a_refusal_is_the_error_of_its_span(node: Any, make_client: Callable[..., AsyncClient], spans: Spans) -> None:
    node.answers["locks.acquire"] = {"ok": False, "status": 423, "code": "held", "detail": "held by b", "holders": []}
    client = make_client(node, traces=True)
    with pytest.raises(LockHeld):
        async with client.lock("a", wait=0):
            pass
    span = spans()["locks.acquire"]
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "held"
    assert not span.events


async def test_messages_carry_the_context_of_their_publication(
    node: Any, make_client: Callable[..., AsyncClient], spans: Spans
) -> None:
    node.answers["queue.publish"] = {"ok": True, "msg_id": "1", "duplicate": False, "messages": []}
    client = make_client(node, traces=True)
    await client.topic("orders").publish(1, headers={"a": "b"})
    span = spans()["queue.publish"]
    assert span.kind is trace.SpanKind.PRODUCER
    (request,) = node.requests("queue.publish")
    assert request["headers"].keys() == {"a", "traceparent"}
    assert request["headers"]["traceparent"].startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
    await client.topic("orders").publish_many([1, 2])
    assert all("traceparent" in message["headers"] for message in node.requests("queue.publish")[1]["messages"])


async def test_nothing_is_added_without_traces(node: Any, client: AsyncClient, spans: Spans) -> None:
    node.answers["queue.publish"] = {"ok": True, "msg_id": "1", "duplicate": False}
    await client.topic("orders").publish(1)
    assert "headers" not in node.requests("queue.publish")[0]
    assert not spans()


@pytest.mark.cluster
def test_a_handled_message_is_linked_to_its_publication(real_node: LocalCluster, token: str, spans: Spans) -> None:
    """The calls of the handler, which runs in another thread, are children of the span."""
    with Client(real_node.nodes[0].url, token, traces=True) as dss:
        dss.topic("traced").publish({"n": 1})

        @dss.worker("traced", group="billing")
        def bill(message: Any) -> None:
            message.ack(publish=[("traced results", 1)])
            dss.cache.put("traced", threading.current_thread().name)
            bill.stop()

        bill.run(handle_signals=False)
        (result,) = dss.topic("traced results").consume("test", wait=5)
    published, handled = spans()["queue.publish"], spans()["process traced"]
    assert handled.kind is trace.SpanKind.CONSUMER
    assert [link.context.span_id for link in handled.links] == [published.context.span_id]
    for name in ("queue.ack", "cache.put"):
        parent = spans()[name].parent
        assert parent is not None
        assert parent.span_id == handled.context.span_id
    assert f"{handled.context.trace_id:032x}" in result.headers["traceparent"]


def test_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    Client("http://127.0.0.1:1")
    with pytest.raises(WrongUse, match=r"dss-client\[otel\]"):
        Client("http://127.0.0.1:1", traces=True)
