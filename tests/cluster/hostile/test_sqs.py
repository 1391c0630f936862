"""Hostile clients at the port of the SQS endpoint: large, slow, many, or nonsense. Nothing is a 500, and memory stays bounded."""

from __future__ import annotations

import copy
import http.client
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from dss_dev.confinement import MIB
from dss_dev.hostile import (
    PATIENCE_S,
    RECEIVE_BUFFER_BYTES,
    SCALE,
    Probe,
    answer_of,
    connections,
    has_been_closed,
    head,
    send_all,
    send_to_all,
)
from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports

pytestmark = pytest.mark.cluster

BLOCK = b"x" * MIB
BODY_BYTES_MAX = 4 * MIB
JSON = "X-Amz-Target: AmazonSQS.ReceiveMessage"
FORM = "Content-Type: application/x-www-form-urlencoded"
OPERATIONS = (
    "AddPermission",
    "CancelMessageMoveTask",
    "ChangeMessageVisibility",
    "ChangeMessageVisibilityBatch",
    "CreateQueue",
    "DeleteMessage",
    "DeleteMessageBatch",
    "GetQueueAttributes",
    "GetQueueUrl",
    "ListDeadLetterSourceQueues",
    "ListMessageMoveTasks",
    "ListQueueTags",
    "ListQueues",
    "ReceiveMessage",
    "RemovePermission",
    "SendMessage",
    "SendMessageBatch",
    "SetQueueAttributes",
    "StartMessageMoveTask",
    "TagQueue",
    "UntagQueue",
)
SNS_OPERATIONS = ("CreateTopic", "ListSubscriptions", "ListTopics", "Publish", "PublishBatch", "Subscribe", "Unsubscribe")
MakeProbe = Callable[..., Probe]


@pytest.fixture(scope="module")
def sqs(node: LocalNode) -> Iterator[LocalNode]:
    """The port of the endpoint, as a node, with a queue `q`."""
    port = copy.copy(node)
    port.port = int(node.environment["DSS_SQS_PORT"])
    assert send(port, "CreateQueue", {"QueueName": "q", "Attributes": {"VisibilityTimeout": "1"}})[0] == 200
    assert ask(port, Action="CreateTopic", Name="t")[0] == 200
    yield port
    send(port, "DeleteQueue", {"QueueUrl": "q"})


def send(sqs: LocalNode, operation: str, request: Any) -> tuple[int, bytes]:
    """Status and body of a call in the JSON protocol."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    reply = sqs.call("POST", "/", body, headers={"X-Amz-Target": f"AmazonSQS.{operation}"})
    return reply.status, reply.body


def ask(sqs: LocalNode, **form: str) -> tuple[int, bytes]:
    """The same in the query protocol."""
    reply = sqs.call("POST", "/", urlencode(form).encode(), headers={"Content-Type": "application/x-www-form-urlencoded"})
    return reply.status, reply.body


@pytest.mark.parametrize("kind", [JSON, FORM])
def test_a_body_of_any_length_is_not_taken(sqs: LocalNode, probe: MakeProbe, kind: str) -> None:
    with probe(), connections(sqs, 1) as (client,):
        client.sendall(head("/", kind, f"Content-Length: {1 << 30}"))
        assert answer_of(client) in (400, 413)
    with probe(), connections(sqs, 1) as (client,):
        client.sendall(head("/", kind, "Transfer-Encoding: chunked"))
        assert not send_all(client, itertools.repeat(b"100000\r\n" + BLOCK + b"\r\n", 100 * SCALE))


def test_heads_that_arrive_slowly_are_given_up(sqs: LocalNode, probe: MakeProbe) -> None:
    with probe(), connections(sqs, 50 * SCALE) as clients:
        send_to_all(clients, b"POST / HTTP/1.1\r\nX-Amz-Tar")
        assert all(has_been_closed(client) for client in clients)


@pytest.mark.parametrize("kind", [JSON, FORM])
def test_bodies_that_never_end_are_not_kept(node: LocalNode, sqs: LocalNode, probe: MakeProbe, kind: str) -> None:
    missing = head("/", kind, f"Content-Length: {BODY_BYTES_MAX}") + b" " * (BODY_BYTES_MAX - 1)
    with probe():
        # Together, they are more than a node may use for its clients.
        for _ in range(8):
            with connections(sqs, 60 * SCALE) as clients:
                send_to_all(clients, missing)
            wait_until_closed(node)


def wait_until_closed(node: LocalNode) -> None:
    """Until the node has seen that all clients but the probe have gone."""
    deadline = time.monotonic() + PATIENCE_S
    while open_connections(node) > 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def open_connections(node: LocalNode) -> float:
    page = node.call("GET", "/metrics").body.decode()
    return float(re.search(r"^dss_http_connections (.+)$", page, re.MULTILINE)[1])  # type: ignore[index]


def test_more_long_polls_than_connections(sqs: LocalNode, probe: MakeProbe) -> None:
    body = json.dumps({"QueueUrl": "q", "WaitTimeSeconds": 5}).encode()
    with probe(), connections(sqs, 60 * SCALE) as clients:
        send_to_all(clients, (head("/", JSON, f"Content-Length: {len(body)}") + body) * 60)
        answer_of(clients[-1])


def test_answers_that_are_not_read_are_not_kept(sqs: LocalNode, probe: MakeProbe) -> None:
    for _ in range(3):
        entries = [{"Id": str(i), "MessageBody": "<" * 100_000} for i in range(10)]
        assert send(sqs, "SendMessageBatch", {"QueueUrl": "q", "Entries": entries})[0] == 200
    # XML makes them four times as long.
    form = urlencode(
        {"Action": "ReceiveMessage", "QueueUrl": "q", "MaxNumberOfMessages": "10", "VisibilityTimeout": "0"}
    ).encode()
    with probe(), connections(sqs, 40 * SCALE, RECEIVE_BUFFER_BYTES) as clients:
        send_to_all(clients, (head("/", FORM, f"Content-Length: {len(form)}") + form) * 20, timeout_s=10.0)
    assert send(sqs, "PurgeQueue", {"QueueUrl": "q"})[0] == 200


VALUES = (
    "", "q", "x" * 3000, "\x00", "\u2028\U0001f600", "a.fifo", "-1", "1e400", "NaN", "{}", "[]", '{"a": [{"numeric": ["<", 1]}]}',
    "[" * 2000, "arn:aws:sqs:us-east-1:000000000000:q", "arn:aws:sns:us-east-1:000000000000:t", "MS0xLjE=", "cS8x", 0, -1, 1, 2**31,
    2**63, 2**200, 0.5, True, None, [], {}, ["q"], [None], [{}], [{"Id": "1"}], [{"Id": "1", "MessageBody": "m"}], {"a": "b"}, {"a": {}},
    {"a": {"DataType": "String", "StringValue": "x"}}, {"a": {"DataType": "Binary", "BinaryValue": "%"}}, {"VisibilityTimeout": "1"},
    {"RedrivePolicy": '{"deadLetterTargetArn": "arn:aws:sqs:us-east-1:000000000000:q", "maxReceiveCount": 1e400}'},
    {"Policy": "[]"}, {"FilterPolicy": '{"a": [{"anything-but": {}}]}'}, {"sqs-attributes": "x"},
)  # fmt: skip
FIELDS = (
    "QueueUrl", "QueueName", "Attributes", "AttributeNames", "tags", "Tags", "TagKeys", "MessageBody", "DelaySeconds", "Entries", "Label",
    "MessageAttributes", "MessageSystemAttributes", "MessageGroupId", "MessageDeduplicationId", "MaxNumberOfMessages", "AWSAccountIds",
    "VisibilityTimeout", "ReceiptHandle", "ReceiveRequestAttemptId", "MaxResults", "NextToken", "Actions", "SourceArn", "DestinationArn",
    "MaxNumberOfMessagesPerSecond", "TaskHandle", "MessageAttributeNames", "MessageSystemAttributeNames", "QueueNamePrefix",
)  # fmt: skip
FORM_FIELDS = (
    *FIELDS, "Attribute.1.Name", "Attribute.1.Value", "Attribute.x", "AttributeName.1", "Tag.1.Key", "MessageAttribute.1.Name",
    "MessageAttribute.1.Value.DataType", "MessageAttribute.1.Value.StringValue", "SendMessageBatchRequestEntry.1.Id",
    "SendMessageBatchRequestEntry.1.MessageBody", "SendMessageBatchRequestEntry.1", "TopicArn", "TargetArn", "Name", "Message", "Subject",
    "MessageStructure", "MessageAttributes.entry.1.Name", "MessageAttributes.entry.1.Value.DataType", "Protocol", "Endpoint", "Version",
    "Attributes.entry.1.key", "Attributes.entry.1.value", "PublishBatchRequestEntries.member.1.Id", "SubscriptionArn", "a..b", ".",
    "PublishBatchRequestEntries.member.1.Message", "1.1.1.1.1.1.1.1.1.1", "Tags.member.1",
)  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nonsense_in_json_is_refused(sqs: LocalNode, operation: str) -> None:
    chance = random.Random(operation)
    for _ in range(40 * SCALE):
        request = {name: chance.choice(VALUES) for name in chance.sample(FIELDS, 5)}
        if chance.random() < 0.7:
            request |= {"QueueUrl": "q", "QueueName": "q", "SourceArn": "arn:aws:sqs:us-east-1:000000000000:q"}
        status, answer = send(sqs, operation, request)
        assert status < 500, (request, answer)
        assert status == 200 or json.loads(answer)["__type"], answer
    for body in (
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff",
        b'"\\ud800"',
        b"[" * 100_000,
        b'{"QueueUrl": "\\ud800"}',
        b'{"QueueUrl":1e999}',
    ):
        status, answer = send(sqs, operation, body)
        assert status < 500, (body, answer)


@pytest.mark.parametrize("operation", [*OPERATIONS, *SNS_OPERATIONS, "", "Nothing"])
def test_nonsense_in_forms_is_refused(sqs: LocalNode, operation: str) -> None:
    chance = random.Random(operation)
    for _ in range(40 * SCALE):
        form = {name: str(chance.choice(VALUES)) for name in chance.sample(FORM_FIELDS, 6)}
        if chance.random() < 0.7:
            form |= {"QueueUrl": "q", "QueueName": "q", "TopicArn": "arn:aws:sns:us-east-1:000000000000:t", "Name": "t"}
        status, answer = ask(sqs, Action=operation, **form)
        assert status < 500, (form, answer)
        assert answer.startswith(b"<?xml"), answer
    for body in (b"Action=%ff", b"&" * 5000, b"=".join([b"a"] * 5000), "é".encode("latin-1"), b"Action=" + b"x" * 100_000):
        reply = sqs.call("POST", "/", body, headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert 400 <= reply.status < 500, body[:100]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])
def test_other_methods_are_refused(sqs: LocalNode, method: str) -> None:
    for path in ("/", "/?Action=ListQueues&" + "a=1&" * 2000, "/../../etc/passwd", "/000000000000/q?Action=%00"):
        for headers in ({}, {"X-Amz-Target": "AmazonSQS.ListQueues"}, {"Authorization": "AWS4-HMAC-SHA256 " + "," * 5000}):
            connection = http.client.HTTPConnection(sqs.host, sqs.port, timeout=30)
            connection.request(method, path, headers=headers)
            assert 400 <= connection.getresponse().status < 500
            connection.close()


EMPTY = b",".join([b"{}"] * (MIB // 3))


@pytest.mark.parametrize("operation", ["SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"])
def test_a_batch_of_very_many_entries_is_refused_at_the_first(sqs: LocalNode, operation: str) -> None:
    """A million of them took 200 MB, and held the node for a second."""
    for entries in (b"{},{},5", EMPTY[: 60 * 1024 - 1] + b",5"):
        status, answer = send(sqs, operation, b'{"QueueUrl": "q", "Entries": [%b]}' % entries)
        assert (status, "Id in Entries[0]" in json.loads(answer)["message"]) == (400, True), answer


def test_a_request_of_very_many_texts_is_refused(sqs: LocalNode) -> None:
    attributes = b",".join(b'"%x":{}' % number for number in range(100_000))
    status, answer = send(sqs, "SendMessage", b'{"QueueUrl":"q","MessageBody":"m","MessageAttributes":{%b}}' % attributes)
    assert (status, "more than 2000 texts" in json.loads(answer)["message"]) == (400, True), answer
    names = b",".join([b'""'] * 5000)
    status, answer = send(sqs, "ReceiveMessage", b'{"QueueUrl":"q","AttributeNames":[%b]}' % names)
    assert (status, "more than 2000 texts" in json.loads(answer)["message"]) == (400, True), answer
    # A message may have as many quotes as it likes.
    assert send(sqs, "SendMessage", {"QueueUrl": "q", "MessageBody": '"' * 50_000})[0] == 200
    assert send(sqs, "PurgeQueue", {"QueueUrl": "q"})[0] in (200, 403)


@pytest.mark.parametrize("operation", ["ReceiveMessage", "DeleteMessageBatch", "SetQueueAttributes"])
def test_an_operation_without_messages_has_no_long_request(sqs: LocalNode, operation: str) -> None:
    status, answer = send(sqs, operation, b'{"QueueUrl":"q","x":"%b"}' % BLOCK)
    assert (status, f"A request for {operation} has at most" in json.loads(answer)["message"]) == (400, True), answer
    status, answer = ask(sqs, Action=operation, QueueUrl="q", x=BLOCK.decode())
    assert (status, f"A request for {operation} has at most".encode() in answer) == (400, True), answer


# ------------------------------------------------------- callers without rights


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory, small_node: dict[str, str]) -> Iterator[tuple[str, Credentials]]:
    """The port of a node whose callers need a token, and a token for the queue `mine`."""
    port, sqs_port = free_ports(2)
    cluster = LocalCluster(tmp_path_factory.mktemp("closed"), [port], {**small_node, "DSS_SQS_PORT": str(sqs_port)})
    cluster.start()
    try:
        cluster.wait_ready()
        (node,) = cluster.nodes
        made = node.call("POST", "/tokens", {"name": "mine", "scopes": ["queue:mine:publish"]})
        assert made.status == 200
        yield f"{node.host}:{sqs_port}", Credentials(*made.json["token"].removeprefix("dss1_").split("_"))
    finally:
        cluster.stop()


def signed(closed: tuple[str, Credentials], body: bytes, **headers: str) -> tuple[int, bytes]:
    """Status and body of a signed call."""
    address, credentials = closed
    request = AWSRequest("POST", f"http://{address}/", headers, body)
    SigV4Auth(credentials, "sqs", "us-east-1").add_auth(request)
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", "/", body, dict(request.headers))
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, read


FORM_HEADERS = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize("action", ["SendMessage&QueueUrl=yours", "Publish&TopicArn=arn:aws:sns:us-east-1:0:yours"])
def test_the_values_of_a_form_are_decoded_after_the_rights_were_checked(closed: tuple[str, Credentials], action: str) -> None:
    """A % that is no escape is found when a value is decoded."""
    body = f"Action={action}&MessageBody=%zz".encode()
    status, answer = signed(closed, body, **FORM_HEADERS)
    assert status == 403, answer
    assert b"the token may not make this call" in answer
    status, answer = signed(closed, body.replace(b"yours", b"mine"), **FORM_HEADERS)
    assert (status, b"MalformedQueryString" in answer) == (400, True), answer


def test_a_request_in_json_is_decoded_after_the_rights_were_checked(closed: tuple[str, Credentials]) -> None:
    body = b'{"QueueUrl": "yours", "Entries": 5}'
    headers = {"X-Amz-Target": "AmazonSQS.SendMessageBatch"}
    status, answer = signed(closed, body, **headers)
    assert (status, json.loads(answer)["__type"]) == (403, "com.amazonaws.sqs#AccessDenied"), answer
    status, answer = signed(closed, body.replace(b"yours", b"mine"), **headers)
    assert (status, json.loads(answer)["__type"]) == (400, "com.amazonaws.sqs#InvalidParameterValue"), answer


def test_a_form_is_read_after_its_signature_was_checked(closed: tuple[str, Credentials]) -> None:
    address, credentials = closed
    wrong = Credentials(credentials.access_key, "wrong")
    status, answer = signed((address, wrong), b"&" * 5000, **FORM_HEADERS)
    assert (status, b"SignatureDoesNotMatch" in answer) == (403, True), answer


def test_a_header_is_signed_once(closed: tuple[str, Credentials]) -> None:
    """What is signed would be as long as the header times its repetitions."""
    address, credentials = closed
    request = AWSRequest("POST", f"http://{address}/", {"X-Amz-Target": "AmazonSQS.ListQueues", "X": "x" * 20_000}, b"{}")
    SigV4Auth(credentials, "sqs", "us-east-1").add_auth(request)
    headers = dict(request.headers)
    headers["Authorization"] = headers["Authorization"].replace("SignedHeaders=", "SignedHeaders=" + "x;" * 1900)
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", "/", b"{}", headers)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["__type"]) == (400, "com.amazonaws.sqs#IncompleteSignature")
    connection.close()
