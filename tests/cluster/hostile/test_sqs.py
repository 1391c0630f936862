"""Hostile clients at the port of the SQS endpoint: large, slow, many, or nonsense. Nothing is a 500, and memory stays bounded."""

from __future__ import annotations

import copy
import http.client
import itertools
import json
import random
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from dss_dev.confinement import MIB
from dss_dev.hostile import (
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
from dss_dev.local_cluster import LocalNode

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
def test_bodies_that_never_end_are_not_kept(sqs: LocalNode, probe: MakeProbe, kind: str) -> None:
    missing = head("/", kind, f"Content-Length: {BODY_BYTES_MAX}") + b" " * (BODY_BYTES_MAX - 1)
    with probe(), connections(sqs, 60 * SCALE) as clients:
        send_to_all(clients, missing)


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
