"""The SQS endpoint: a port of its own on the node's HTTP listener, for the JSON protocol of Amazon SQS and its older query protocol.

Every limit of the listener holds, and a call passes `Route.begin` as the calls of all entry points do: rights, quotas and the audit trail
are the same. A queue is a topic with the group `sqs`; see `core/sqs_queues.py`.

Checks come before work: the signature, the length that the operation allows, and the right to use the queue, for which only its name is
decoded; then the whole request is decoded, whose number of texts is limited.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import msgspec
import structlog

from dss_api import operation as operations
from dss_api.answer import Answer
from dss_api.caller import ANYONE, Caller
from dss_api.codec import INTERNAL, EncodedAnswer
from dss_api.errors import Refused
from dss_api.guard import Guard
from dss_api.http_request import HttpRequest
from dss_api.rights import ANY_TOKEN, OPERATE, READ, Either, Need, queue
from dss_api.routes import require_right, require_state, route_of
from dss_queue.sqs import (
    message_calls,
    move_calls,
    policy_calls,
    query,
    queue_calls,
    requests,
    signature,
    sns_calls,
    sns_requests,
)
from dss_queue.sqs.attributes import REGION_DEFAULT
from dss_queue.sqs.calls import Call, Reply
from dss_queue.sqs.dialect import SNS, SQS, Dialect
from dss_queue.sqs.errors import SqsError, bad_value, of_refusal
from dss_queue.sqs.wire import encode_answer, encode_error, encode_refusal

log = structlog.get_logger("api")

TARGET = "AmazonSQS."
#: Texts in the JSON of a request, names of fields included: a batch of 10 messages with 10 attributes each has fewer.
TEXTS_MAX = 2000
_MISSING = re.compile(r"Object missing required field `(?P<field>\w+)`( - at `\$\.?(?P<place>.*)`)?")
MANAGE = Either((OPERATE, queue("manage", "topic")))
LOOK = Either((READ, queue("publish", "topic"), queue("consume", "topic"), queue("manage", "topic")))
SEND = queue("publish", "topic")
TAKE = queue("consume", "topic")

Handle = Callable[[Call], Awaitable[Reply]]

#: operation -> its request, the right that it needs, what carries it out
OPERATIONS: dict[str, tuple[type[requests.Input], Need, Handle]] = {
    "CreateQueue": (requests.CreateQueueInput, MANAGE, queue_calls.create_queue),
    "GetQueueUrl": (requests.GetQueueUrlInput, LOOK, queue_calls.get_queue_url),
    "ListQueues": (requests.ListQueuesInput, ANY_TOKEN, queue_calls.list_queues),
    "ListDeadLetterSourceQueues": (requests.ListSourcesInput, LOOK, queue_calls.list_sources),
    "DeleteQueue": (requests.QueueInput, MANAGE, queue_calls.delete_queue),
    "PurgeQueue": (requests.QueueInput, MANAGE, queue_calls.purge_queue),
    "GetQueueAttributes": (requests.GetAttributesInput, LOOK, queue_calls.get_attributes),
    "SetQueueAttributes": (requests.SetAttributesInput, MANAGE, queue_calls.set_attributes),
    "TagQueue": (requests.TagInput, MANAGE, queue_calls.tag_queue),
    "UntagQueue": (requests.UntagInput, MANAGE, queue_calls.untag_queue),
    "ListQueueTags": (requests.QueueInput, LOOK, queue_calls.list_tags),
    "AddPermission": (requests.AddPermissionInput, MANAGE, policy_calls.add_permission),
    "RemovePermission": (requests.RemovePermissionInput, MANAGE, policy_calls.remove_permission),
    "StartMessageMoveTask": (requests.StartMoveInput, MANAGE, move_calls.start_move),
    "CancelMessageMoveTask": (requests.CancelMoveInput, MANAGE, move_calls.cancel_move),
    "ListMessageMoveTasks": (requests.ListMovesInput, LOOK, move_calls.list_moves),
    "SendMessage": (requests.SendMessageInput, SEND, message_calls.send_message),
    "SendMessageBatch": (requests.SendBatchInput, SEND, message_calls.send_batch),
    "ReceiveMessage": (requests.ReceiveInput, TAKE, message_calls.receive),
    "DeleteMessage": (requests.DeleteInput, TAKE, message_calls.delete_message),
    "DeleteMessageBatch": (requests.DeleteBatchInput, TAKE, message_calls.delete_batch),
    "ChangeMessageVisibility": (requests.VisibilityInput, TAKE, message_calls.change_visibility),
    "ChangeMessageVisibilityBatch": (requests.VisibilityBatchInput, TAKE, message_calls.change_visibility_batch),
}
#: the same for SNS
SNS_OPERATIONS: dict[str, tuple[type[requests.Input], Need, Handle]] = {
    "CreateTopic": (sns_requests.CreateTopicInput, MANAGE, sns_calls.create_topic),
    "DeleteTopic": (sns_requests.TopicInput, MANAGE, sns_calls.delete_topic),
    "GetTopicAttributes": (sns_requests.TopicInput, LOOK, sns_calls.get_attributes),
    "ListTopics": (sns_requests.ListTopicsInput, ANY_TOKEN, sns_calls.list_topics),
    "ListSubscriptions": (sns_requests.ListTopicsInput, ANY_TOKEN, sns_calls.list_subscriptions),
    "ListSubscriptionsByTopic": (sns_requests.ListByTopicInput, LOOK, sns_calls.list_subscriptions_by_topic),
    "Subscribe": (sns_requests.SubscribeInput, MANAGE, sns_calls.subscribe),
    "Unsubscribe": (sns_requests.UnsubscribeInput, MANAGE, sns_calls.unsubscribe),
    "Publish": (sns_requests.PublishInput, SEND, sns_calls.publish),
    "PublishBatch": (sns_requests.PublishBatchInput, SEND, sns_calls.publish_batch),
}
#: those that change nothing
READS = frozenset(
    ("GetQueueUrl", "ListQueues", "ListDeadLetterSourceQueues", "GetQueueAttributes", "ListQueueTags", "ListMessageMoveTasks")
)
SNS_READS = frozenset(("GetTopicAttributes", "ListTopics", "ListSubscriptions", "ListSubscriptionsByTopic"))


class SqsRequest(msgspec.Struct):
    """A call, for the check of rights and the audit trail."""

    topic: str
    input: Any
    base_url: str
    region: str


class Operation:
    """An operation, prepared before its first call."""

    def __init__(self, name: str, input_type: type[requests.Input], needs: Need, handle: Handle, service: str = "sqs") -> None:
        self.name = name
        self.input_type = input_type
        self.names_a_queue = "queue_url" in input_type.naming
        #: the part of a request that names its queue
        self.name_type = cast(
            type[requests.Input],
            msgspec.defstruct(
                f"{name}Name",
                [(field, str, "") for field in input_type.naming],
                bases=(requests.Input,),
                namespace={"named": input_type.named},
                kw_only=True,
            ),
        )
        self.name_fields = self.name_type.__struct_encode_fields__
        self.decode = msgspec.json.Decoder(input_type, strict=False).decode
        self.decode_name = msgspec.json.Decoder(self.name_type, strict=False).decode
        self.handle = handle
        operation = operations.Operation(
            name=f"{service}.{name}",
            method="GET" if name in READS | SNS_READS else "POST",
            path=f"/{service}/{name}",
            request=SqsRequest,
            handle=self._handle,
            answer=Answer,
            needs=needs,
            summary=name,
        )
        self.route = route_of(operation)

    def require_right(self, caller: Caller, name: str) -> None:
        """Raises:
        Refused: `forbidden`: the caller may not make this call for this queue. `Route.begin` checks it again, with the request.
        """
        require_right(self.route.needs, caller, SqsRequest(name, None, "", ""))

    def require_length(self, length: int) -> None:
        """Raises:
        SqsError: the body is longer than any request of this operation.
        """
        most = self.input_type.body_bytes_max
        if length > most:
            raise bad_value(f"A request for {self.name} has at most {most} bytes.")

    async def _handle(self, node: Any, request: SqsRequest) -> Any:
        return await self.handle(Call(node, request.topic, request.input, request.base_url, request.region))


class SqsPort:
    """Decides what answers the requests at the port. See `dss_api.other_port`.

    Args:
        scheme: of the port: begins the URLs of queues.
    """

    encode_refusal = staticmethod(encode_refusal)

    def __init__(self, guard: Guard, scheme: str = "http", wall_s: Callable[[], float] = time.time) -> None:
        self.guard = guard
        self.scheme = scheme
        self.wall_s = wall_s
        self.operations = {name: Operation(name, *given) for name, given in OPERATIONS.items()}
        self.sns_operations = {name: Operation(name, *given, service="sns") for name, given in SNS_OPERATIONS.items()}

    def find(self, request: HttpRequest) -> SqsCall:
        """What answers this request, whose head has arrived.

        Raises:
            SqsError: no operation; its caller is not known.
        """
        target = _header(request.headers, b"x-amz-target")
        if target:
            if request.method != b"POST":
                raise SqsError("InvalidAction", "Send calls of the JSON protocol as POST.")
            operation = self.operations.get(target.removeprefix(TARGET)) if target.startswith(TARGET) else None
            if operation is None:
                raise SqsError("UnknownOperationException", f"There is no operation {target[:200]}.")
            call = SqsCall(self, request, operation)
            self.caller_of(request, request.address)
            return call
        try:
            _require_no_page(request)
            self.caller_of(request, request.address)
        except Refused as refusal:
            error = of_refusal(refusal)
            error.dialect = SQS
            raise error from None
        return QueryCall(self, request)

    def caller_of(self, request: HttpRequest, address: str | None = None) -> Caller:
        """Who signed the request: the signature is checked when its body is there.

        Raises:
            Refused, SqsError: the token is not valid, or there is none.
        """
        if self.guard.is_open:
            return ANYONE
        return self.guard.signer(
            signature.read(_header(request.headers, b"authorization").encode("latin-1")).access_key, address
        )[0]


class _Head(NamedTuple):
    """What a call needs of its request.

    The request refers to its call. With the whole request in the call, only garbage collection would free a body that has not arrived
    completely.
    """

    method: bytes
    target: bytes
    path: str
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]


class SqsCall:
    """One call: takes the place of a route for its connection, and of a decoder."""

    reads_query = False
    outlives_tokens = False
    path_parameter = ""
    #: of the query protocol; None: JSON
    dialect: Dialect | None = None

    def __init__(self, port: SqsPort, request: HttpRequest, operation: Operation | None) -> None:
        self._port = port
        self._head = _Head(request.method, request.target, request.path, request.query, request.headers)
        self._operation = operation
        self._body = b""
        self.decoder = self

    def observe(self, status: int, duration_s: float) -> None:
        """See `Route.observe`. Requests that name no operation are not counted."""
        if self._operation is not None:
            self._operation.route.observe(status, duration_s)

    def typed_body(self, content_type: bytes, body: bytes) -> Any:
        """Keep the body: it is decoded after its signature was checked."""
        self._body = body
        return self

    async def carry_out(
        self,
        find_node: Callable[[], Any],
        decoded: Any,
        caller: Caller,
        via: str,
        address: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> EncodedAnswer:
        """See `Route.carry_out`."""
        try:
            region = self._check_signature(caller, headers, address)
            node = find_node()
            require_state(node)
            operation = self._find_operation()
            operation.require_length(len(self._body))
            if caller is not ANYONE and not caller.access.everything:
                operation.require_right(caller, self._translated(self._decoded_name, operation).named())
            given = self._translated(self._decoded, operation)
            request = SqsRequest(given.named(), given, self._base_url(headers), region)
            reply: Any = await operation.route.begin(node, request, caller, "sqs", address)
            answer = encode_answer(reply.body, operation.name, self.dialect)
            answer.undo = reply.undo
            return answer
        except Refused as refusal:
            error = of_refusal(refusal)
        except Exception:
            log.exception("api.failed", operation=self._operation.route.name if self._operation is not None else "")
            error = SqsError("InternalFailure", INTERNAL, 500)
        error.dialect = self.dialect
        return encode_error(error)

    def _base_url(self, headers: Sequence[tuple[bytes, bytes]]) -> str:
        return f"{self._port.scheme}://{_header(headers, b'host') or 'localhost'}"

    def _check_signature(self, caller: Caller, headers: Sequence[tuple[bytes, bytes]], address: str) -> str:
        """Returns the region that the client has signed for."""
        authorization = _header(headers, b"authorization").encode("latin-1")
        if caller is ANYONE:
            try:
                return signature.read(authorization).region or REGION_DEFAULT
            except SqsError:
                return REGION_DEFAULT
        signed = signature.read(authorization)
        secrets = self._port.guard.signer(signed.access_key)[1]
        head = self._head
        try:
            signature.verify(
                signed, secrets, head.method.decode("latin-1"), head.target, headers, self._body, self._port.wall_s()
            )
        except SqsError:
            self._port.guard.note_failure(address)
            raise
        return signed.region

    def _find_operation(self) -> Operation:
        """Raises:
        SqsError: the request names none.
        """
        assert self._operation is not None
        return self._operation

    def _decoded_name(self, operation: Operation) -> requests.Input:
        """The part of the request that names its queue."""
        return operation.decode_name(self._body or b"{}")

    def _decoded(self, operation: Operation) -> requests.Input:
        """The request."""
        require_few_texts(self._body)
        return operation.decode(self._body or b"{}")

    @staticmethod
    def _translated(decode: Callable[[Operation], requests.Input], operation: Operation) -> requests.Input:
        """What this function decodes.

        Raises:
            SqsError: the request is not valid.
        """
        try:
            return decode(operation)
        except msgspec.ValidationError as error:
            if missing := _MISSING.fullmatch(str(error)):
                place = f" in {missing['place']}" if missing["place"] else ""
                raise SqsError("MissingParameter", f"The request must contain the parameter {missing['field']}{place}.") from None
            raise bad_value(f"The request is not valid: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SqsError("SerializationException", "The body is not JSON.") from None
        except RecursionError:
            raise bad_value("The request is nested too deeply.") from None


class QueryCall(SqsCall):
    """A call in the query protocol: the body names the operation."""

    dialect: Dialect = SQS

    def __init__(self, port: SqsPort, request: HttpRequest) -> None:
        super().__init__(port, request, None)
        #: the values are as they were sent
        self._fields: dict[str, bytes] = {}

    def _find_operation(self) -> Operation:
        fields = query.fields_of(self._head.query, self._body if self._head.method == b"POST" else b"")
        action = query.short_text(fields, "Action")
        if not action:
            raise SqsError("MissingAction", "The request must contain the parameter Action, or the header X-Amz-Target.")
        if query.short_text(fields, "Version").startswith("2010") or action in self._port.sns_operations:
            self.dialect = SNS
        known = self._port.sns_operations if self.dialect is SNS else self._port.operations
        operation = self._operation = known.get(action)
        if operation is None:
            raise SqsError("InvalidAction", f"The action {action[:200]} is not valid for this endpoint.")
        is_signed = bool(_header(self._head.headers, b"authorization"))
        if self._head.method == b"GET" and not is_signed and operation.name not in READS | SNS_READS:
            # A picture on a page is such a GET, and not each browser says where it comes from.
            raise SqsError("InvalidAction", f"Send {operation.name} as POST, or sign it.")
        if operation.names_a_queue and self._head.path != "/":
            fields.setdefault("QueueUrl", quote(self._head.path).encode())
        self._fields = fields
        return operation

    def _decoded_name(self, operation: Operation) -> requests.Input:
        given = {name: query.short_text(self._fields, name) for name in operation.name_fields if name in self._fields}
        return msgspec.convert(given, operation.name_type, strict=False)

    def _decoded(self, operation: Operation) -> requests.Input:
        given = query.request_of(query.form_of(self._fields))
        return msgspec.convert(given, operation.input_type, strict=False)


def require_few_texts(body: bytes) -> None:
    """Each text in JSON begins with a `"` that is not escaped, and ends with one more. Inside, each one is escaped, and so is each
    backslash.

    Raises:
        SqsError: the body has more than `TEXTS_MAX` texts. Decoding them would take long, and much memory.
    """
    if len(body) <= 2 * TEXTS_MAX:
        return
    unescaped = body.replace(b"\\\\", b"") if b"\\\\" in body else body
    if unescaped.count(b'"') - unescaped.count(b'\\"') > 2 * TEXTS_MAX:
        raise bad_value(f"The request has more than {TEXTS_MAX} texts.")


def _require_no_page(request: HttpRequest) -> None:
    """A page of another site can send a form to this port, but cannot hide where it comes from.

    Raises:
        SqsError: a browser sent the request.
    """
    if request.method not in (b"GET", b"POST"):
        raise SqsError("InvalidAction", "Send calls as POST, or queries as GET.")
    for name in (b"origin", b"referer", b"sec-fetch-site"):
        if _header(request.headers, name):
            raise SqsError("AccessDenied", "This port does not answer browsers.", 403)


def _header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str:
    for found, value in headers:
        if found == name:
            return value.decode("latin-1")
    return ""
