"""A node with DSS_TRACES sends spans to a collector that speaks OTLP over HTTP, and works without one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from websockets.sync.client import connect

from dss_dev.local_cluster import HOST, LocalCluster, LocalNode, free_ports
from dss_dev.prepared_pages import ENVIRONMENT, prepare_pages

pytestmark = pytest.mark.cluster

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
PATIENCE_S = 60.0
SERVER = 2


class Span:
    def __init__(self, span: Any, resource: Any) -> None:
        self.name, self.kind, self.parent = span.name, span.kind, span.parent_span_id.hex()
        self.trace, self.id = span.trace_id.hex(), span.span_id.hex()
        self.is_error = span.status.code == 2
        self.links = [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]
        self.attributes = {one.key: _value(one.value) for one in span.attributes}
        self.resource = {one.key: _value(one.value) for one in resource.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


class Collector:
    """Receives spans, as a collector of OpenTelemetry does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._changed = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
                request = ExportTraceServiceRequest.FromString(body)
                with collector._changed:
                    for resources in request.resource_spans:
                        for scope in resources.scope_spans:
                            collector.spans += [Span(span, resources.resource) for span in scope.spans]
                    collector._changed.notify_all()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait(self, wanted: Callable[[Span], bool]) -> Span:
        """The first span that is wanted."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(wanted(span) for span in self.spans), PATIENCE_S), [
                (span.name, span.attributes) for span in self.spans
            ]
            return next(span for span in self.spans if wanted(span))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def started(directory: Any, **environment: str) -> LocalCluster:
    cluster = LocalCluster(directory, free_ports(1), {**ENVIRONMENT, "OTEL_BSP_SCHEDULE_DELAY": "100", **environment})
    prepare_pages(cluster)
    cluster.start()
    cluster.wait_ready()
    return cluster


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[LocalNode]:
    cluster = started(
        tmp_path_factory.mktemp("traces"),
        DSS_TRACES="true",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
    )
    yield cluster.nodes[0]
    cluster.stop()


def test_a_call_continues_the_trace_of_its_caller(node: LocalNode, collector: Collector) -> None:
    assert node.call("POST", "/cache/put", {"key": "traced", "value": "secret"}, headers=HEADERS).status == 200
    span = collector.wait(lambda span: span.attributes.get("dss.key") == "traced")
    assert (span.trace, span.parent, span.name, span.kind) == (TRACE, PARENT, "POST /cache/put", SERVER)
    index = span.attributes.pop("dss.index")
    assert index > 0
    assert span.attributes == {
        "rpc.system": "dss",
        "rpc.method": "cache.put",
        "client.address": HOST,
        "dss.entry_point": "http",
        "http.request.method": "POST",
        "http.route": "/cache/put",
        "http.response.status_code": 200,
        "dss.key": "traced",
    }
    assert span.resource["service.name"] == "dss"
    assert span.resource["service.instance.id"] == node.id
    assert span.resource["deployment.environment.name"] == "test"


def test_a_call_on_a_websocket(node: LocalNode, collector: Collector) -> None:
    with connect(f"ws://{HOST}:{node.port}/ws") as client:
        call = {"id": 1, "op": "cache.get", "request": {"key": "on-websocket"}, **HEADERS}
        client.send(json.dumps(call))
        assert json.loads(client.recv(PATIENCE_S))["status"] == 200
    span = collector.wait(lambda span: span.attributes.get("dss.key") == "on-websocket")
    assert (span.trace, span.parent, span.name) == (TRACE, PARENT, "cache.get")


def test_a_consumer_links_to_the_publisher(node: LocalNode, collector: Collector) -> None:
    messages = [{"value": 1}, {"value": 2, "headers": {"traceparent": f"00-{TRACE}-{PARENT}-01"}}]
    node.call("POST", "/queue/publish", {"topic": "traced", "messages": messages})
    taken = node.call("POST", "/queue/consume", {"topic": "traced", "group": "g", "max_messages": 2}).json["messages"]
    published = collector.wait(lambda span: span.attributes["rpc.method"] == "queue.publish")
    consumed = collector.wait(lambda span: span.attributes["rpc.method"] == "queue.consume")
    assert published.attributes["messaging.operation.type"] == "send"
    assert taken[0]["headers"].keys() == {"traceparent"}
    assert taken[0]["headers"]["traceparent"].startswith(f"00-{published.trace}-{published.id}-")
    assert consumed.links == [(published.trace, published.id), (TRACE, PARENT)]
    assert consumed.trace != published.trace
    expected = {
        "messaging.system": "dss",
        "messaging.operation.name": "consume",
        "messaging.operation.type": "receive",
        "messaging.destination.name": "traced",
        "messaging.consumer.group.name": "g",
        "messaging.batch.message_count": 2,
    }
    assert expected.items() <= consumed.attributes.items()


@pytest.mark.parametrize(
    "meta",
    [{"traceparent": "x", "baggage": 5}, {"traceparent": f"00-{1:032x}-{1:016x}-01", "tracestate": 5}, {"traceparent": 7}],
)
def test_metadata_of_a_lock_that_looks_like_a_context_does_no_harm(node: LocalNode, meta: dict[str, Any]) -> None:
    assert node.call("POST", "/lock/acquire", {"key": "poisoned", "client": "x", "meta": meta}).status == 200
    try:
        assert node.call("POST", "/lock/acquire", {"key": "poisoned", "client": "y"}).json["code"] == "held"
    finally:
        assert node.call("POST", "/lock/force_release", {"key": "poisoned", "reason": "test"}).status == 200


def test_a_refused_lock_links_to_its_holder(node: LocalNode, collector: Collector) -> None:
    assert node.call("POST", "/lock/acquire", {"key": "door", "client": "a", "meta": {"job": 7}}).status == 200
    assert node.call("POST", "/lock/acquire", {"key": "door", "client": "b"}).status == 423
    held = collector.wait(lambda span: span.attributes.get("dss.client") == "a")
    refused = collector.wait(lambda span: span.attributes.get("dss.client") == "b")
    assert refused.links == [(held.trace, held.id)]
    assert refused.attributes["error.type"] == "held"
    assert not refused.is_error
    (holder,) = node.call("GET", "/lock/status?key=door").json["holders"]
    assert holder["meta"].keys() == {"job", "traceparent"}
    assert holder["meta"]["traceparent"].startswith(f"00-{held.trace}-{held.id}-")


def test_a_repeat_is_the_same_request(node: LocalNode) -> None:
    """The context that the node adds differs between a call and its repeat."""
    session = node.call("POST", "/request/session", {"ttl_ms": 60_000}).json["session"]
    call = {"topic": "repeated", "value": 1, "request_id": f"{session}:1"}
    first, again = (node.call("POST", "/queue/publish", call).json for _ in range(2))
    assert first == again


def test_probes_have_no_spans(node: LocalNode, collector: Collector) -> None:
    node.call("GET", "/ready", headers=HEADERS)
    node.call("GET", "/raft/status")
    collector.wait(lambda span: span.attributes["rpc.method"] == "raft.status")
    assert not [span for span in collector.spans if span.attributes["rpc.method"] in ("ready", "health")]
    metrics = node.call("GET", "/metrics", headers=node.credentials).body.decode()
    assert 'dss_trace_spans_total{result="failed"} 0.0' in metrics
    assert 'dss_trace_spans_total{result="exported"} 0.0' not in metrics


def test_a_log_line_names_its_trace(node: LocalNode) -> None:
    """A forced release is logged in the call."""
    node.call("POST", "/lock/acquire", {"key": "logged", "client": "a"})
    node.call("POST", "/queue/publish", {"topic": "t", "value": 1})
    answer = node.call("POST", "/lock/force_release", {"key": "logged", "reason": "test"}, headers=HEADERS)
    assert answer.status == 200
    lines = [json.loads(line) for line in node.log_path.read_text().splitlines() if line.startswith("{")]
    named = [line for line in lines if line.get("trace_id") == TRACE]
    assert named, lines[-5:]
    assert all(len(line["span_id"]) == 16 for line in named)


def test_without_a_collector(tmp_path: Any) -> None:
    """Calls work, spans are dropped, the log says it once, and the node stops as quickly as before."""
    closed = free_ports(1)[0]
    cluster = started(
        tmp_path,
        DSS_TRACES="true",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{HOST}:{closed}",
        OTEL_BSP_MAX_QUEUE_SIZE="64",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="32",
    )
    node = cluster.nodes[0]
    try:
        for number in range(300):
            assert node.call("POST", "/cache/put", {"key": "k", "value": number}).status == 200
        deadline = time.monotonic() + PATIENCE_S
        while "traces.not_exported" not in node.log_path.read_text():
            assert time.monotonic() < deadline, node.log_tail()
            node.call("POST", "/cache/put", {"key": "k", "value": 1})
            time.sleep(0.1)
        assert node.call("GET", "/ready").status == 200
    finally:
        assert node.stop() == 0
    assert node.log_path.read_text().count("traces.not_exported") == 1


def test_settings_that_cannot_work_stop_the_start(tmp_path: Any) -> None:
    cluster = LocalCluster(tmp_path, free_ports(1), {**ENVIRONMENT, "DSS_TRACES": "true", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    prepare_pages(cluster)
    cluster.start()
    node = cluster.nodes[0]
    assert node.process is not None
    assert node.process.wait(60) == 1
    assert "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf" in node.log_tail()
