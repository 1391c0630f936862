"""OpenTelemetry spans of calls, with `DSS_TRACES`. They need the extra `[otel]`.

A call on any entry point is a SERVER span. It continues the trace of the caller: `traceparent` is a header of HTTP, and a member of a
frame on a WebSocket. Messages and locks carry the context of the call that made them, a message in its headers and a lock in its
metadata. The span of a call that takes messages links to the spans that published them; that of one that waited for a lock, or did not get
it, to the spans whose calls held it.

Without the setting, the routes are plain ones (`dss_api/routes.py`), and nothing here runs. Spans are exported by a thread from a queue of
bounded length. Without a collector they are dropped, which the log says once.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
https://opentelemetry.io/docs/concepts/sdk-configuration/otlp-exporter-configuration/
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import structlog
from prometheus_client import Counter

from dss_api import routes
from dss_api.answer import Answer
from dss_api.caller import ANYONE, Caller
from dss_api.codec import EncodedAnswer
from dss_api.operation import Operation
from dss_api.request_id import Identified
from dss_api.result import Result
from dss_api.routes import Headers, Route
from dss_locks.core.commands import Acquire
from dss_project.config import NodeConfig
from dss_queue.answers import ConsumeAnswer
from dss_queue.core.commands import AckRequest, PublishRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanContext, Tracer

log = structlog.get_logger("traces")

SYSTEM = "dss"
PROTOCOL = "http/protobuf"
#: how long a stopping node waits until its last spans are sent
LAST_SPANS_S = 2.0
#: asked all the time by probes and clients
UNTRACED = frozenset(("health", "ready", "raft.leader", "requests.open", "requests.close"))
#: names of W3C's trace context
CONTEXT = (b"traceparent", b"tracestate")
LINKS_MAX = 32
#: an operation of the queue -> its type in OpenTelemetry's conventions
_MESSAGING = {"queue.publish": "send", "queue.consume": "receive", "queue.ack": "settle", "queue.nack": "settle"}
#: a field of a request -> the attribute that has it
_ATTRIBUTES = {
    "topic": "messaging.destination.name",
    "group": "messaging.consumer.group.name",
    "msg_id": "messaging.message.id",
    "key": "dss.key",
    "keys": "dss.keys",
    "client": "dss.client",
}

SPANS = Counter("dss_trace_spans_total", "Spans given to the collector of traces (DSS_TRACES), by result.", ["result"])
for _result in ("exported", "failed"):
    SPANS.labels(_result)


class TracesUnusable(Exception):
    """The settings ask for traces, and this node cannot make them."""


class TracedRoute(Route):
    """A route whose calls are spans. `begin` sets the tracer before the first route is made."""

    __slots__ = ("attributes", "title")

    tracer: ClassVar[Tracer]

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self.title = f"{operation.method} {operation.path}"
        self.attributes: dict[str, Any] = {"rpc.system": SYSTEM, "rpc.method": operation.name}
        if operation.name in _MESSAGING:
            self.attributes |= {
                "messaging.system": SYSTEM,
                "messaging.operation.name": operation.name.partition(".")[2],
                "messaging.operation.type": _MESSAGING[operation.name],
            }

    async def carry_out(
        self,
        find_node: Callable[[], Any],
        request: Any,
        caller: Caller,
        via: str,
        address: str,
        headers: Headers = (),
    ) -> EncodedAnswer:
        if self.name in UNTRACED:
            return await super().carry_out(find_node, request, caller, via, address, headers)
        with self._span(request, caller, via, address, headers) as span:
            answer = await super().carry_out(find_node, request, caller, via, address, headers)
            if via == "http":
                span.set_attribute("http.response.status_code", answer.status)
            if answer.status >= 400:
                _set_refused(span, answer.status, msgspec.json.decode(answer.body).get("code", ""))
            return answer

    async def perform(
        self, node: Any, request: Any, caller: Caller, via: str, address: str, headers: Headers = ()
    ) -> Result | Answer:
        if self.name in UNTRACED:
            return await super().perform(node, request, caller, via, address)
        with self._span(request, caller, via, address, headers):
            return await super().perform(node, request, caller, via, address)

    @contextmanager
    def _span(self, request: Any, caller: Caller, via: str, address: str, headers: Headers) -> Iterator[Span]:
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind

        given = {name.decode(): value.decode("latin-1") for name, value in headers if name in CONTEXT}
        attributes = {**self.attributes, "client.address": address, "dss.entry_point": via}
        if via == "http":
            method, _, path = self.title.partition(" ")
            attributes |= {"http.request.method": method, "http.route": path}
        if caller is not ANYONE:
            attributes["dss.caller"] = caller.name
        fields = request.request if type(request) is Identified else request
        for field, attribute in _ATTRIBUTES.items():
            if value := getattr(fields, field, None):
                attributes[attribute] = value
        with self.tracer.start_as_current_span(
            self.name if via == "websocket" else self.title,
            propagate.extract(given),
            SpanKind.SERVER,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    def begin(self, node: Any, request: Any, caller: Caller, via: str, address: str) -> Awaitable[Result | Answer]:
        from opentelemetry.trace import get_current_span

        span = get_current_span()
        if not span.is_recording():
            return super().begin(node, request, caller, via, address)
        fields = request.request if type(request) is Identified else request
        holders = _holders(node, fields) if isinstance(fields, Acquire) else []
        if span.get_span_context().trace_flags.sampled:
            fields = _with_context(fields)
        request = Identified(fields, request.id) if type(request) is Identified else fields
        return _linked(span, super().begin(node, request, caller, via, address), holders)


async def _linked(span: Span, work: Awaitable[Result | Answer], holders: list[SpanContext]) -> Result | Answer:
    """The result of a call, with its links and its index in the span."""
    result = await work
    links = _publishers(result) if isinstance(result, ConsumeAnswer) else []
    if holders and isinstance(result, Result) and (result.code or result.body.get("waited_ms")):
        links = holders
    for link in links[:LINKS_MAX]:
        span.add_link(link)
    if index := getattr(result, "index", 0):
        span.set_attribute("dss.index", index)
    if isinstance(result, ConsumeAnswer):
        count = len(result.messages) if result.messages is not msgspec.UNSET else int(result.msg_id is not None)
        span.set_attribute("messaging.batch.message_count", count)
    return result


def _set_refused(span: Span, status: int, code: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", code)
    # OpenTelemetry's conventions: what the caller did wrong is no error of the server.
    if status >= 500:
        span.set_status(StatusCode.ERROR, code)


def _with_context(request: Any) -> Any:
    """The request, whose messages or lock carry the context of the current span, unless they have one or have no room for it."""
    from opentelemetry import propagate

    context: dict[str, str] = {}
    propagate.inject(context)

    def carried(one: Any, field: str) -> Any:
        given = getattr(one, field) or {}
        if not context or "traceparent" in given:
            return one
        try:
            return msgspec.structs.replace(one, **{field: {**context, **given}})
        except ValueError:
            return one

    if isinstance(request, PublishRequest):
        if request.messages is None:
            return carried(request, "headers")
        return msgspec.structs.replace(request, messages=[carried(one, "headers") for one in request.messages])
    if isinstance(request, AckRequest) and request.publish:
        return msgspec.structs.replace(request, publish=[carried(one, "headers") for one in request.publish])
    return carried(request, "meta") if isinstance(request, Acquire) else request


def _holders(node: Any, request: Acquire) -> list[SpanContext]:
    """The calls that hold the keys of `request`."""
    locks = node.machine("locks").locks
    found = []
    for key in [*(request.keys or (request.key,))][:LINKS_MAX]:
        lock = locks.get(key)
        for hold in lock.holds()[:LINKS_MAX] if lock is not None else ():
            if hold.client != request.client and hold.meta is not None:
                found += _contexts([hold.meta.value()])
    return found


def _publishers(answer: ConsumeAnswer) -> list[SpanContext]:
    """The calls that published these messages."""
    several = answer.messages if answer.messages is not msgspec.UNSET else [answer]
    headers = [one.headers for one in several if one.headers is not msgspec.UNSET]
    return _contexts(msgspec.json.decode(text) if isinstance(text, msgspec.Raw) else text for text in headers)


def _contexts(carriers: Iterable[Any]) -> list[SpanContext]:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    extract = TraceContextTextMapPropagator().extract
    found = []
    for carrier in carriers:
        if isinstance(carrier, Mapping) and isinstance(carrier.get("traceparent"), str):
            # A client can put any JSON into the metadata of a lock.
            texts = {name: carrier[name] for name in ("traceparent", "tracestate") if isinstance(carrier.get(name), str)}
            context = trace.get_current_span(extract(texts)).get_span_context()
            if context.is_valid:
                found.append(context)
    return found


def begin(config: NodeConfig, exporter: SpanExporter | None = None) -> Callable[[], None]:
    """Make the spans of this process from now on. Call it before routes are made. Returns what ends it.

    Args:
        exporter: gets the spans; None: the one that the environment variables of OpenTelemetry describe.

    Raises:
        TracesUnusable: OpenTelemetry is not installed, or the variables ask for what the node does not have.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracesUnusable(f"DSS_TRACES needs OpenTelemetry: pip install 'distributed-sync-system[otel]' ({error})") from None
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if (protocol := os.environ.get(variable, PROTOCOL)) != PROTOCOL:
            raise TracesUnusable(f"{variable} must be {PROTOCOL}, the only protocol of this node, and not {protocol}")
    names = {"service.instance.id": config.node_id}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        names["service.name"] = SYSTEM
    # Attributes of the environment count more than the node's.
    resource = Resource({**names, "service.version": _version()}).merge(Resource.create())
    if str(resource.attributes.get("service.name")).startswith("unknown_service"):
        resource = resource.merge(Resource(names))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    try:
        provider.add_span_processor(BatchSpanProcessor(_counted(exporter or OTLPSpanExporter())))
    except ValueError as error:
        raise TracesUnusable(f"the variables OTEL_… of the batch span processor cannot be used: {error}") from None
    TracedRoute.tracer = provider.get_tracer("dss")
    routes.use(TracedRoute)

    def end() -> None:
        # An exporter without a collector waits longer than a node may take to stop.
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(LAST_SPANS_S)

    return end


def _version() -> str:
    from importlib.metadata import version

    return version("distributed-sync-system")


def _counted(exporter: SpanExporter) -> SpanExporter:
    """The exporter, which counts the spans and logs when it begins to fail and when it works again."""
    import logging

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    # They log every batch that fails.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    class Counted(SpanExporter):
        has_failed = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            try:
                result, why = exporter.export(spans), "the collector does not take them"
            except Exception as error:
                result, why = SpanExportResult.FAILURE, str(error)
            failed = result is not SpanExportResult.SUCCESS
            SPANS.labels("failed" if failed else "exported").inc(len(spans))
            if failed and not self.has_failed:
                log.warning("traces.not_exported", why=why, hint="spans are dropped until it does; see dss_trace_spans_total")
            elif self.has_failed and not failed:
                log.info("traces.exported_again")
            self.has_failed = failed
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return Counted()


def add_trace(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """For structlog: name the trace in whose call a line was logged."""
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"], event["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return event
