"""OpenTelemetry spans, for programs that ask for them with `traces=True`. They need the extra `[otel]`.

Each call is a span with the name of its operation; a publication is a PRODUCER span. Calls, and messages in their headers, carry its
context (`traceparent`), as the program's propagators write it: the node's spans continue the trace. A worker handles each message in a
CONSUMER span that links to the producer's. What the client does by itself, to renew leases or to wait for messages, has no spans.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dss_client.errors import DssError, WrongUse

if TYPE_CHECKING:
    from opentelemetry.trace import Span

SYSTEM = "dss"
#: The client makes these calls by itself.
UNTRACED = frozenset({"locks.renew", "queue.extend", "raft.leader", "requests.close", "requests.open"})
#: a field of a call -> the attribute that has it
_ATTRIBUTES = {
    "topic": "messaging.destination.name",
    "group": "messaging.consumer.group.name",
    "msg_id": "messaging.message.id",
    "key": "dss.key",
    "keys": "dss.keys",
}
#: an operation of the queue -> its type in OpenTelemetry's conventions
_MESSAGING = {"queue.publish": "send", "queue.consume": "receive", "queue.ack": "settle", "queue.nack": "settle"}


class Tracing:
    """Makes the spans of a client, with the program's tracer provider.

    Raises:
        WrongUse: OpenTelemetry is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import propagate, trace
        except ImportError:
            raise WrongUse("`traces` needs OpenTelemetry: pip install 'dss-client[otel]'") from None
        self._trace = trace
        self._propagate = propagate
        self._tracer = trace.get_tracer("dss_client")

    @contextlib.contextmanager
    def call(self, operation: str, fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The span of a call. Yields the fields to send: those of a publication have the span's context in their headers."""
        kind = self._trace.SpanKind.PRODUCER if operation == "queue.publish" else self._trace.SpanKind.CLIENT
        attributes: dict[str, Any] = {"rpc.system": SYSTEM, "rpc.method": operation}
        attributes |= {name: fields[field] for field, name in _ATTRIBUTES.items() if fields.get(field)}
        if operation in _MESSAGING:
            attributes |= {
                "messaging.system": SYSTEM,
                "messaging.operation.name": operation.partition(".")[2],
                "messaging.operation.type": _MESSAGING[operation],
            }
        with self._span(operation, kind, attributes):
            yield self._with_context(operation, fields)

    @contextlib.contextmanager
    def process(self, topic: str, group: str, msg_id: str, attempt: int, headers: Mapping[str, str]) -> Iterator[None]:
        """The span in which a worker handles a message."""
        origin = self._trace.get_current_span(self._propagate.extract(headers)).get_span_context()
        attributes: dict[str, Any] = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": topic,
            "messaging.consumer.group.name": group,
            "messaging.message.id": msg_id,
            "dss.attempt": attempt,
        }
        links = [self._trace.Link(origin)] if origin.is_valid else []
        with self._span(f"process {topic}", self._trace.SpanKind.CONSUMER, attributes, links):
            yield

    def context(self) -> dict[str, str]:
        """The context of the current span, for a call to a node, whose span continues the trace."""
        context: dict[str, str] = {}
        self._propagate.inject(context)
        return context

    def set_node(self, url: str) -> None:
        """Add the node that carried out the call to the current span."""
        parts = urlsplit(url)
        span = self._trace.get_current_span()
        span.set_attribute("server.address", parts.hostname or "")
        span.set_attribute("server.port", parts.port or 0)

    @contextlib.contextmanager
    def _span(self, name: str, kind: Any, attributes: dict[str, Any], links: Any = ()) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name, kind=kind, attributes=attributes, links=links, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except Exception as error:
                span.set_attribute("error.type", error.code if isinstance(error, DssError) else type(error).__qualname__)
                span.set_status(self._trace.StatusCode.ERROR, str(error))
                if not isinstance(error, DssError):
                    span.record_exception(error)
                raise

    def _with_context(self, operation: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        list_of = {"queue.publish": "messages", "queue.ack": "publish"}.get(operation)
        if list_of is None:
            return fields
        context: dict[str, str] = {}
        self._propagate.inject(context)
        if not context:
            return fields
        if list_of in fields:
            messages = [{**one, "headers": {**context, **one.get("headers", {})}} for one in fields[list_of]]
            return {**fields, list_of: messages}
        if operation == "queue.publish":
            return {**fields, "headers": {**context, **fields.get("headers", {})}}
        return fields
