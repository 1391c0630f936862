"""The SQS endpoint with boto3 as a real client. The tests of this module share one node."""

from __future__ import annotations

import datetime
import json
import socket
import threading
import time
import uuid
from hashlib import md5
from unittest import mock

import boto3
import botocore.auth
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session

from dss_dev.local_cluster import HOST

pytestmark = pytest.mark.cluster

FIFO = {"FifoQueue": "true"}


@pytest.fixture(scope="module")
def node(sqs_node):
    return sqs_node


def connected(node, access_key="any", secret="any", service="sqs"):
    return boto3.client(
        service,
        endpoint_url=f"http://{HOST}:{node.sqs_port}",
        region_name="eu-west-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret,
        config=Config(retries={"max_attempts": 0}, read_timeout=60),
    )


@pytest.fixture(scope="module")
def sqs(node):
    return connected(node)


@pytest.fixture
def make(sqs):
    """Makes queues with names of their own."""

    def make(fifo=False, **attributes):
        name = f"q-{uuid.uuid4().hex[:12]}{'.fifo' if fifo else ''}"
        attributes |= FIFO if fifo else {}
        return sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]

    return make


@pytest.fixture(params=["raft", "redis"])
def make_on(request, make):
    """As `make`, on each engine."""

    def make_on(fifo=False, **attributes):
        if request.param == "redis":
            attributes = {"DssEngine": "redis", **({"DeduplicationScope": "messageGroup"} if fifo else {}), **attributes}
        return make(fifo, **attributes)

    return make_on


def refused(code, call, **fields):
    """The refusal of a call, whose code must be this."""
    with pytest.raises(ClientError) as caught:
        call(**fields)
    error = caught.value.response["Error"]
    assert error["Code"] == code, error
    return error["Message"]


def take(sqs, url, count=10, **fields):
    return sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=count, **fields).get("Messages", [])


def bodies(messages):
    return [message["Body"] for message in messages]


def until_waiters(node, url, count):
    """Wait until so many long polls wait at the queue."""
    deadline = time.monotonic() + 60
    while (found := waiters(node, url)) != count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def waiters(node, url):
    (group,) = node.call("GET", f"/queue/stats?topic={url.rpartition('/')[2]}").json["groups"]
    return group["waiters"]


def test_send_receive_delete(sqs, make_on):
    url = make_on()
    sent = sqs.send_message(QueueUrl=url, MessageBody="héllo \U0001f600")
    assert sent["MD5OfMessageBody"] == md5("héllo \U0001f600".encode()).hexdigest()
    (message,) = take(sqs, url, AttributeNames=["All"])
    assert (message["Body"], message["MessageId"]) == ("héllo \U0001f600", sent["MessageId"])
    system = message["Attributes"]
    assert system["ApproximateReceiveCount"] == "1"
    assert abs(int(system["SentTimestamp"]) / 1000 - time.time()) < 60
    assert int(system["ApproximateFirstReceiveTimestamp"]) >= int(system["SentTimestamp"])
    assert take(sqs, url) == []
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    counts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert (counts["ApproximateNumberOfMessages"], counts["ApproximateNumberOfMessagesNotVisible"]) == ("0", "0")


def test_message_attributes_and_their_md5(sqs, make_on):
    url = make_on()
    given = {
        "a.b": {"DataType": "String", "StringValue": "x"},
        "n": {"DataType": "Number.int", "StringValue": "-12.5e3"},
        "raw": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
    }
    # botocore compares the MD5s itself.
    sqs.send_message(QueueUrl=url, MessageBody="b", MessageAttributes=given)
    (message,) = take(sqs, url, MessageAttributeNames=["a.*", "raw"], VisibilityTimeout=0)
    assert message["MessageAttributes"] == {name: given[name] for name in ("a.b", "raw")}
    (message,) = take(sqs, url)
    assert "MessageAttributes" not in message
    trace = {"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1-2-3"}}
    sqs.send_message(QueueUrl=url, MessageBody="c", MessageSystemAttributes=trace)
    (message,) = take(sqs, url, MessageSystemAttributeNames=["AWSTraceHeader"])
    assert message["Attributes"] == {"AWSTraceHeader": "Root=1-2-3"}


def test_a_batch_answers_for_each_entry(sqs, make_on):
    url = make_on()
    entries = [{"Id": str(i), "MessageBody": f"m{i}"} for i in range(9)] + [{"Id": "bad", "MessageBody": "\x00"}]
    sent = sqs.send_message_batch(QueueUrl=url, Entries=entries)
    assert [one["Id"] for one in sent["Successful"]] == [str(i) for i in range(9)]
    assert [(one["Id"], one["Code"], one["SenderFault"]) for one in sent["Failed"]] == [("bad", "InvalidMessageContents", True)]
    messages = take(sqs, url)
    assert bodies(messages) == [f"m{i}" for i in range(9)]
    handles = [{"Id": f"d{i}", "ReceiptHandle": one["ReceiptHandle"]} for i, one in enumerate(messages)]
    changed = sqs.change_message_visibility_batch(QueueUrl=url, Entries=[{**handles[0], "VisibilityTimeout": 0}])
    assert [one["Id"] for one in changed["Successful"]] == ["d0"]
    assert bodies(take(sqs, url)) == ["m0"]
    done = sqs.delete_message_batch(QueueUrl=url, Entries=[*handles[1:], {"Id": "x", "ReceiptHandle": "nonsense"}])
    assert len(done["Successful"]) == 8
    assert [(one["Id"], one["Code"]) for one in done["Failed"]] == [("x", "ReceiptHandleIsInvalid")]
    batch = sqs.send_message_batch
    refused("AWS.SimpleQueueService.EmptyBatchRequest", batch, QueueUrl=url, Entries=[])
    refused("AWS.SimpleQueueService.TooManyEntriesInBatchRequest", batch, QueueUrl=url, Entries=[*entries, entries[0]])
    refused("AWS.SimpleQueueService.BatchEntryIdsNotDistinct", batch, QueueUrl=url, Entries=[entries[0], entries[0]])
    refused("AWS.SimpleQueueService.InvalidBatchEntryId", batch, QueueUrl=url, Entries=[{"Id": "a b", "MessageBody": "x"}])
    long = [{"Id": str(i), "MessageBody": "x" * 300_000} for i in range(4)]
    refused("AWS.SimpleQueueService.BatchRequestTooLong", batch, QueueUrl=url, Entries=long)


@pytest.mark.parametrize("fifo", [False, True])
def test_a_batch_may_have_several_receipts_of_a_message(sqs, make_on, fifo):
    url = make_on(fifo=fifo)
    sqs.send_message(QueueUrl=url, MessageBody="m", **({"MessageGroupId": "g", "MessageDeduplicationId": "d"} if fifo else {}))
    (old,) = take(sqs, url, VisibilityTimeout=0)
    (new,) = take(sqs, url)
    entries = [{"Id": str(i), "ReceiptHandle": one["ReceiptHandle"]} for i, one in enumerate((new, old))]
    done = sqs.delete_message_batch(QueueUrl=url, Entries=entries)
    assert "0" in {one["Id"] for one in done["Successful"]}
    counts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert counts["ApproximateNumberOfMessagesNotVisible"] == "0"


def test_a_long_poll_gets_the_next_message(sqs, node, make_on):
    url = make_on()
    got = []
    waiting = threading.Thread(target=lambda: got.extend(take(connected(node), url, WaitTimeSeconds=20)))
    waiting.start()
    until_waiters(node, url, 1)
    sqs.send_message(QueueUrl=url, MessageBody="late")
    waiting.join(30)
    assert bodies(got) == ["late"]


def test_a_client_that_hangs_up_loses_no_message(sqs, node, make_on):
    url = make_on(VisibilityTimeout="600")
    body = json.dumps({"QueueUrl": url, "WaitTimeSeconds": 20}).encode()
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nX-Amz-Target: AmazonSQS.ReceiveMessage\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(3):
        abandoned = socket.create_connection((HOST, node.sqs_port))
        abandoned.sendall(head.encode() + body)
        until_waiters(node, url, 1)
        abandoned.close()
        until_waiters(node, url, 0)
    sqs.send_message(QueueUrl=url, MessageBody="kept")
    (message,) = take(sqs, url, WaitTimeSeconds=20, AttributeNames=["All"])
    assert (message["Body"], message["Attributes"]["ApproximateReceiveCount"]) == ("kept", "1")


def test_visibility(sqs, make_on):
    url = make_on(VisibilityTimeout="600")
    sqs.send_message(QueueUrl=url, MessageBody="m")
    (message,) = take(sqs, url)
    named = {"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]}
    sqs.change_message_visibility(**named, VisibilityTimeout=900)
    sqs.change_message_visibility(**named, VisibilityTimeout=0)
    refused("AWS.SimpleQueueService.MessageNotInflight", sqs.change_message_visibility, **named, VisibilityTimeout=10)
    refused("InvalidParameterValue", sqs.change_message_visibility, **named, VisibilityTimeout=43_201)
    (again,) = take(sqs, url, AttributeNames=["All"])
    assert again["Attributes"]["ApproximateReceiveCount"] == "2"
    sqs.delete_message(**named)
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert attributes["ApproximateNumberOfMessagesNotVisible"] == "1", "an old receipt handle deletes nothing"


def test_delays(sqs, make_on):
    url = make_on(DelaySeconds="900")
    sqs.send_message(QueueUrl=url, MessageBody="queue's")
    sqs.send_message(QueueUrl=url, MessageBody="own", DelaySeconds=0)
    assert bodies(take(sqs, url)) == ["own"]
    names = ["ApproximateNumberOfMessagesDelayed"]
    assert sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"] == {names[0]: "1"}
    refused("InvalidParameterValue", sqs.send_message, QueueUrl=url, MessageBody="m", DelaySeconds=901)


def test_creating_listing_and_deleting(sqs, make):
    name = f"list-{uuid.uuid4().hex[:8]}"
    urls = [sqs.create_queue(QueueName=f"{name}-{i}")["QueueUrl"] for i in range(3)]
    assert sqs.get_queue_url(QueueName=f"{name}-1")["QueueUrl"] == urls[1]
    first = sqs.list_queues(QueueNamePrefix=name, MaxResults=2)
    assert first["QueueUrls"] == urls[:2]
    assert sqs.list_queues(QueueNamePrefix=name, MaxResults=2, NextToken=first["NextToken"])["QueueUrls"] == urls[2:]
    assert sqs.create_queue(QueueName=f"{name}-0", Attributes={"VisibilityTimeout": "30"})["QueueUrl"] == urls[0], "its default"
    refused("QueueAlreadyExists", sqs.create_queue, QueueName=f"{name}-0", Attributes={"VisibilityTimeout": "31"})
    sqs.send_message(QueueUrl=urls[0], MessageBody="gone")
    sqs.delete_queue(QueueUrl=urls[0])
    missing = "AWS.SimpleQueueService.NonExistentQueue"
    for call in (sqs.delete_queue, sqs.receive_message, sqs.purge_queue, sqs.list_queue_tags):
        refused(missing, call, QueueUrl=urls[0])
    refused(missing, sqs.send_message, QueueUrl=urls[0], MessageBody="m")
    refused(missing, sqs.get_queue_url, QueueName=f"{name}-0")
    sqs.create_queue(QueueName=f"{name}-0")
    assert take(sqs, urls[0]) == []


def test_a_queue_that_is_deleted_ends_its_long_polls(sqs, node, make_on):
    url = make_on()
    errors = []

    def wait():
        try:
            take(connected(node), url, WaitTimeSeconds=20)
        except ClientError as error:
            errors.append(error.response["Error"]["Code"])

    waiting = threading.Thread(target=wait)
    waiting.start()
    until_waiters(node, url, 1)
    sqs.delete_queue(QueueUrl=url)
    waiting.join(30)
    assert errors == ["AWS.SimpleQueueService.NonExistentQueue"]


def test_attributes_and_tags(sqs, make):
    url = make(MessageRetentionPeriod="120")
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    name = url.rpartition("/")[2]
    assert attributes["QueueArn"] == f"arn:aws:sqs:eu-west-1:000000000000:{name}"
    assert (attributes["MessageRetentionPeriod"], attributes["VisibilityTimeout"]) == ("120", "30")
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "5", "Policy": '{"Version": "2012-10-17"}'})
    names = ["VisibilityTimeout", "Policy"]
    assert sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]["VisibilityTimeout"] == "5"
    for given in ({"VisibilityTimeout": "x"}, {"DelaySeconds": "901"}, {"Policy": "no JSON"}, {"RedrivePolicy": "{}"}):
        refused("InvalidAttributeValue", sqs.set_queue_attributes, QueueUrl=url, Attributes=given)
    for given in ({"Colour": "red"}, {"QueueArn": "x"}, {"ContentBasedDeduplication": "true"}):
        refused("InvalidAttributeName", sqs.set_queue_attributes, QueueUrl=url, Attributes=given)
    refused("InvalidAttributeName", sqs.get_queue_attributes, QueueUrl=url, AttributeNames=["Colour"])
    sqs.tag_queue(QueueUrl=url, Tags={"team": "a", "cost": "1"})
    sqs.untag_queue(QueueUrl=url, TagKeys=["cost", "other"])
    assert sqs.list_queue_tags(QueueUrl=url)["Tags"] == {"team": "a"}


def test_dead_letters_keep_their_id(sqs, make):
    dead = make()
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    url = make(RedrivePolicy=json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 2}))
    sent = sqs.send_message(QueueUrl=url, MessageBody="m", MessageAttributes={"a": {"DataType": "String", "StringValue": "x"}})
    for _ in range(2):
        (message,) = take(sqs, url)
        sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0)
    assert take(sqs, url) == []
    (message,) = take(sqs, dead, AttributeNames=["All"], MessageAttributeNames=["All"])
    assert (message["MessageId"], message["MessageAttributes"]["a"]["StringValue"]) == (sent["MessageId"], "x")
    assert message["Attributes"]["DeadLetterQueueSourceArn"].endswith(url.rpartition("/")[2])
    assert sqs.list_dead_letter_source_queues(QueueUrl=dead)["queueUrls"] == [url]
    for count in (5, "5"):
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": count})
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": policy})
        stored = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])["Attributes"]["RedrivePolicy"]
        assert json.loads(stored) == {"deadLetterTargetArn": arn, "maxReceiveCount": 5}
    nowhere = json.dumps({"deadLetterTargetArn": f"{arn}x", "maxReceiveCount": 2})
    refused("InvalidParameterValue", sqs.set_queue_attributes, QueueUrl=url, Attributes={"RedrivePolicy": nowhere})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": ""})
    assert "queueUrls" in sqs.list_dead_letter_source_queues(QueueUrl=dead)


def arn_of(sqs, url):
    return sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]


def test_dead_letters_move_back(sqs, make):
    dead = make()
    arn = arn_of(sqs, dead)
    url = make(RedrivePolicy=json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1}))
    for i in range(3):
        sqs.send_message(QueueUrl=url, MessageBody=f"m{i}")
    take(sqs, url, VisibilityTimeout=0)
    handle = sqs.start_message_move_task(SourceArn=arn, MaxNumberOfMessagesPerSecond=500)["TaskHandle"]
    deadline = time.monotonic() + 60
    while (task := sqs.list_message_move_tasks(SourceArn=arn)["Results"][0])["Status"] == "RUNNING":
        assert time.monotonic() < deadline
        assert task["TaskHandle"] == handle
        time.sleep(0.05)
    assert (task["Status"], task["SourceArn"], task["ApproximateNumberOfMessagesMoved"]) == ("COMPLETED", arn, 3)
    # A standard queue does not keep the order of messages that come back.
    assert sorted(bodies(take(sqs, url))) == ["m0", "m1", "m2"]
    refused("AWS.SimpleQueueService.UnsupportedOperation", sqs.cancel_message_move_task, TaskHandle=handle)


def test_moves_that_are_refused(sqs, make):
    dead, url = make(), make()
    arn, own = arn_of(sqs, dead), arn_of(sqs, url)
    start = sqs.start_message_move_task
    refused("InvalidParameterValue", start, SourceArn=arn)
    sqs.set_queue_attributes(
        QueueUrl=url, Attributes={"RedrivePolicy": json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1})}
    )
    refused("InvalidParameterValue", start, SourceArn=arn, MaxNumberOfMessagesPerSecond=501)
    refused("InvalidParameterValue", start, SourceArn="dead")
    refused("InvalidParameterValue", start, SourceArn=arn, DestinationArn=arn)
    refused("InvalidParameterValue", start, SourceArn=arn, DestinationArn=arn_of(sqs, make(fifo=True)))
    refused("ResourceNotFoundException", start, SourceArn=arn + "x")
    refused("ResourceNotFoundException", start, SourceArn=arn, DestinationArn=own + "x")
    refused("ResourceNotFoundException", sqs.cancel_message_move_task, TaskHandle="eA==")
    refused("InvalidParameterValue", sqs.list_message_move_tasks, SourceArn=arn, MaxResults=11)
    for i in range(3):
        sqs.send_message(QueueUrl=dead, MessageBody=f"m{i}")
    handle = start(SourceArn=arn, DestinationArn=own, MaxNumberOfMessagesPerSecond=1)["TaskHandle"]
    refused("InvalidParameterValue", start, SourceArn=arn, DestinationArn=own)
    assert bodies(take(sqs, url, WaitTimeSeconds=20)) == ["m0"]
    assert sqs.cancel_message_move_task(TaskHandle=handle)["ApproximateNumberOfMessagesMoved"] in (1, 2)


def test_permissions_are_statements_of_the_policy(sqs, make):
    url = make()
    add = {"QueueUrl": url, "Label": "one", "AWSAccountIds": ["111111111111"], "Actions": ["SendMessage"]}
    sqs.add_permission(**add)
    refused("InvalidParameterValue", sqs.add_permission, **add)
    sqs.add_permission(**{**add, "Label": "two", "AWSAccountIds": ["111111111111", "222222222222"]})
    for wrong in ({"Label": "a b"}, {"AWSAccountIds": ["1"]}, {"Actions": ["CreateQueue"]}):
        refused("InvalidParameterValue", sqs.add_permission, **{**add, "Label": "x", **wrong})
    policy = json.loads(sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])["Attributes"]["Policy"])
    assert [one["Sid"] for one in policy["Statement"]] == ["one", "two"]
    for label in ("one", "two"):
        sqs.remove_permission(QueueUrl=url, Label=label)
    assert "Attributes" not in sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])
    refused("InvalidParameterValue", sqs.remove_permission, QueueUrl=url, Label="one")


def test_a_queue_is_purged_once_a_minute(sqs, make_on):
    url = make_on()
    sqs.send_message(QueueUrl=url, MessageBody="m")
    sqs.purge_queue(QueueUrl=url)
    assert take(sqs, url) == []
    refused("AWS.SimpleQueueService.PurgeQueueInProgress", sqs.purge_queue, QueueUrl=url)


def test_a_visibility_timeout_of_zero_leaves_messages_visible(sqs, make_on):
    url = make_on()
    sqs.send_message(QueueUrl=url, MessageBody="m")
    assert len(take(sqs, url, VisibilityTimeout=0)) == 1
    (second,) = take(sqs, url, AttributeNames=["All"])
    assert second["Attributes"]["ApproximateReceiveCount"] == "2"


def test_a_fifo_queue_hands_out_runs_of_a_group(sqs, make_on):
    url = make_on(fifo=True, ContentBasedDeduplication="true")
    for i in range(30):
        sqs.send_message(QueueUrl=url, MessageBody=f"a{i}", MessageGroupId="a")
    sqs.send_message(QueueUrl=url, MessageBody="b0", MessageGroupId="b")
    # On the engine, a call gets messages of one partition, and the groups may be in two.
    other, run = sorted((take(sqs, url, AttributeNames=["All"]) for _ in range(2)), key=len)
    assert (bodies(run), bodies(other)) == ([f"a{i}" for i in range(10)], ["b0"])
    numbers = [one["Attributes"]["SequenceNumber"] for one in run]
    assert numbers == sorted(numbers)
    assert take(sqs, url) == [], "a group with messages in flight waits"
    sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=run[0]["ReceiptHandle"], VisibilityTimeout=0)
    again = take(sqs, url)
    assert bodies(again) == bodies(run)
    sqs.delete_message_batch(
        QueueUrl=url, Entries=[{"Id": str(i), "ReceiptHandle": one["ReceiptHandle"]} for i, one in enumerate(reversed(again))]
    )
    assert bodies(take(sqs, url)) == [f"a{i}" for i in range(10, 20)]


def test_a_fifo_queue_stores_a_message_once(sqs, make):
    url = make(fifo=True)
    first = sqs.send_message(QueueUrl=url, MessageBody="1", MessageGroupId="g", MessageDeduplicationId="d")
    second = sqs.send_message(QueueUrl=url, MessageBody="2", MessageGroupId="h", MessageDeduplicationId="d")
    assert (second["MessageId"], second["SequenceNumber"]) == (first["MessageId"], first["SequenceNumber"])
    assert bodies(take(sqs, url)) == ["1"]
    refused("MissingParameter", sqs.send_message, QueueUrl=url, MessageBody="m", MessageDeduplicationId="e")
    refused("MissingParameter", sqs.send_message_batch, QueueUrl=url, Entries=[{"Id": "a", "MessageBody": "m"}])
    refused("InvalidParameterValue", sqs.send_message, QueueUrl=url, MessageBody="m", MessageGroupId="g")
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"DeduplicationScope": "messageGroup"})
    for group in ("g1", "g2"):
        sqs.send_message(QueueUrl=url, MessageBody=group, MessageGroupId=group, MessageDeduplicationId="same")
    assert sorted(bodies(take(sqs, url))) == ["g1", "g2"]


def test_a_receive_whose_answer_was_lost_can_be_repeated(sqs, make_on):
    url = make_on(fifo=True)
    sqs.send_message(QueueUrl=url, MessageBody="m", MessageGroupId="g", MessageDeduplicationId="d")
    first = take(sqs, url, ReceiveRequestAttemptId="once")
    assert take(sqs, url, ReceiveRequestAttemptId="once") == first


def test_the_queue_is_a_topic(sqs, node, make_on):
    url = make_on()
    topic = url.rpartition("/")[2]
    node.call("POST", "/queue/publish", {"topic": topic, "value": {"a": 1}})
    node.call("POST", "/queue/publish", {"topic": topic, "value": "text"})
    assert sorted(bodies(take(sqs, url) + take(sqs, url))) == ["text", '{"a": 1}']
    sqs.purge_queue(QueueUrl=url)
    sqs.send_message(QueueUrl=url, MessageBody="for others, too")
    answer = node.call("POST", "/queue/consume", {"topic": topic, "group": "audit"}).json
    assert answer["value"] == "for others, too"


ON_REDIS = {"DssEngine": "redis"}
BATCH = [
    {"Id": str(i), "MessageBody": f"{i}", "MessageGroupId": f"g{i % 5}", "MessageDeduplicationId": f"{i}"} for i in range(10)
]


def test_a_batch_for_several_message_groups(sqs, make_on):
    url = make_on(fifo=True)
    sent = sqs.send_message_batch(QueueUrl=url, Entries=BATCH)
    assert ([one["Id"] for one in sent["Successful"]], sent.get("Failed", [])) == ([str(i) for i in range(10)], [])
    got = [message for _ in range(5) for message in take(sqs, url, WaitTimeSeconds=1)]
    assert sorted(bodies(got)) == [str(i) for i in range(10)]
    again = sqs.send_message_batch(QueueUrl=url, Entries=BATCH)
    assert [one["MessageId"] for one in again["Successful"]] == [one["MessageId"] for one in sent["Successful"]]


def test_a_queue_moves_and_is_received_in_order(sqs, node, make):
    url = make(fifo=True, ContentBasedDeduplication="true", DeduplicationScope="messageGroup")
    topic = url.rpartition("/")[2]

    def send(*texts):
        for text in texts:
            sqs.send_message(QueueUrl=url, MessageBody=text, MessageGroupId="g")

    def take_all(count):
        got = []
        while len(got) < count:
            messages = take(sqs, url, WaitTimeSeconds=10)
            got += bodies(messages)
            for message in messages:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return got

    send("1", "2")
    sqs.set_queue_attributes(QueueUrl=url, Attributes=ON_REDIS)
    send("3", "1")
    assert node.call("GET", f"/queue/stats?topic={topic}").json["moving_from"] == "raft"
    assert take_all(3) == ["1", "2", "3"], "a deduplication id counts although the queue has moved"
    send("4")
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"DssEngine": "raft"})
    send("5")
    assert "still being moved" in refused("InvalidAttributeValue", sqs.set_queue_attributes, QueueUrl=url, Attributes=ON_REDIS)
    assert take_all(2) == ["4", "5"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    assert (attributes["DssEngine"], attributes["ApproximateNumberOfMessages"]) == ("raft", "0")


def test_what_a_queue_on_the_engine_cannot_have(sqs, node, make):
    url, plain = make(DssEngine="redis"), make()
    arn, of_plain = arn_of(sqs, url), arn_of(sqs, plain)
    change = sqs.set_queue_attributes
    policy = {"RedrivePolicy": json.dumps({"deadLetterTargetArn": of_plain, "maxReceiveCount": 1})}
    assert "RedrivePolicy" in refused("InvalidAttributeValue", change, QueueUrl=url, Attributes=policy)
    to_engine = {"RedrivePolicy": json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1})}
    assert "RedrivePolicy" in refused("InvalidAttributeValue", change, QueueUrl=plain, Attributes=to_engine)
    source = make(**policy)
    assert "RedrivePolicy" in refused("InvalidAttributeValue", change, QueueUrl=source, Attributes=ON_REDIS)
    assert source.rpartition("/")[2] in refused("InvalidAttributeValue", change, QueueUrl=plain, Attributes=ON_REDIS)
    move = sqs.start_message_move_task
    assert "no task moves" in refused("AWS.SimpleQueueService.UnsupportedOperation", move, SourceArn=of_plain, DestinationArn=arn)
    fifo = {**FIFO, **ON_REDIS}
    scope = refused("InvalidAttributeValue", sqs.create_queue, QueueName=f"{uuid.uuid4().hex}.fifo", Attributes=fifo)
    assert "DeduplicationScope" in scope
    sns = connected(node, service="sns")
    topic = sns.create_topic(Name=f"t-{uuid.uuid4().hex[:8]}")["TopicArn"]
    assert "Endpoint" in refused("InvalidParameter", sns.subscribe, TopicArn=topic, Protocol="sqs", Endpoint=arn)
    subscribed = make()
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn_of(sqs, subscribed))
    assert "SNS" in refused("InvalidAttributeValue", change, QueueUrl=subscribed, Attributes=ON_REDIS)
    for attributes, named in (
        ({"DssEngine": "kafka"}, "DssEngine"),
        ({"DssAcks": "replica"}, "DssAcks"),
        ({**ON_REDIS, "DssAcks": "fsync"}, "DssAcks"),
    ):
        assert named in refused("InvalidAttributeValue", sqs.create_queue, QueueName=uuid.uuid4().hex, Attributes=attributes)


def test_the_attributes_of_the_engine_are_shown_where_they_were_set(sqs, make):
    url, plain = make(DssEngine="redis"), make()
    shown = [sqs.get_queue_attributes(QueueUrl=one, AttributeNames=["All"])["Attributes"] for one in (url, plain)]
    assert [one.get("DssEngine") for one in shown] == ["redis", None]
    assert sqs.create_queue(QueueName=plain.rpartition("/")[2], Attributes={"DssEngine": "raft"})["QueueUrl"] == plain
    refused("QueueAlreadyExists", sqs.create_queue, QueueName=plain.rpartition("/")[2], Attributes=ON_REDIS)


def test_a_topic_on_the_engine_that_becomes_a_queue_stays_there(sqs, node):
    name = "was-a-topic"
    node.call("PUT", "/queue/topic", {"topic": name, "engine": "redis"})
    node.call("POST", "/queue/publish", {"topic": name, "value": "text"})
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    assert sqs.create_queue(QueueName=name)["QueueUrl"] == url
    try:
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        assert (attributes["DssEngine"], attributes["DssAcks"]) == ("redis", "primary")
        assert "moving_from" not in node.call("GET", f"/queue/stats?topic={name}").json
        assert len(take(sqs, url)) == 1
    finally:
        sqs.delete_queue(QueueUrl=url)


def test_a_queue_whose_servers_are_away(sqs, node, make, wait_until):
    url, plain = make(DssEngine="redis"), make()

    def state():
        return node.call("GET", "/ready").json["services"]["queue.engine"]

    node.valkey.kill()
    wait_until(lambda: state() == "away", state)
    try:
        for call, fields in (
            (sqs.send_message, {"MessageBody": "m"}),
            (sqs.receive_message, {}),
            (sqs.get_queue_attributes, {"AttributeNames": ["All"]}),
            (sqs.purge_queue, {}),
        ):
            refused("ServiceUnavailable", call, QueueUrl=url, **fields)
        assert arn_of(sqs, url).endswith(url.rpartition("/")[2]), "the log knows it"
        refused("ServiceUnavailable", sqs.create_queue, QueueName=uuid.uuid4().hex, Attributes=ON_REDIS)
        sqs.send_message(QueueUrl=plain, MessageBody="goes on")
        assert bodies(take(sqs, plain)) == ["goes on"]
    finally:
        node.valkey.start()
        node.valkey.wait_started()
    wait_until(lambda: state() == "ready", state)
    sqs.purge_queue(QueueUrl=url)
    sqs.send_message(QueueUrl=url, MessageBody="again")
    assert bodies(take(sqs, url)) == ["again"]


def test_bad_input(sqs, node, make):
    url = make(MaximumMessageSize="1024")
    refused("MissingParameter", sqs.send_message, QueueUrl=url, MessageBody="")
    assert "1024 bytes" in refused("InvalidParameterValue", sqs.send_message, QueueUrl=url, MessageBody="x" * 1025)
    refused("InvalidMessageContents", sqs.send_message, QueueUrl=url, MessageBody="\x01")
    for attribute in (
        {"DataType": "Other", "StringValue": "x"},
        {"DataType": "Number", "StringValue": "x"},
        {"DataType": "String"},
    ):
        refused("InvalidParameterValue", sqs.send_message, QueueUrl=url, MessageBody="m", MessageAttributes={"a": attribute})
    refused("InvalidParameterValue", sqs.receive_message, QueueUrl=url, MaxNumberOfMessages=11)
    refused("InvalidParameterValue", sqs.receive_message, QueueUrl=url, WaitTimeSeconds=21)
    refused("ReceiptHandleIsInvalid", sqs.delete_message, QueueUrl=url, ReceiptHandle="x")
    refused("InvalidParameterValue", sqs.create_queue, QueueName="no spaces")
    refused("InvalidParameterValue", sqs.create_queue, QueueName="no-suffix", Attributes=FIFO)
    for target, body, code in (
        ("AmazonSQS.Nothing", b"{}", "UnknownOperationException"),
        ("AmazonSQS.SendMessage", b"{", "SerializationException"),
        ("AmazonSQS.SendMessage", b'{"QueueUrl": 7}', "InvalidParameterValue"),
        ("AmazonSQS.SendMessage", b"[]", "InvalidParameterValue"),
        ("AmazonSQS.ReceiveMessage", b'{"QueueUrl": "x/y z"}', "InvalidAddress"),
        ("AmazonSQS.CreateQueue", b'{"QueueName": "q", "Attributes": {"a": 1}}', "InvalidParameterValue"),
    ):
        status, answer = raw(node, target, body)
        assert (status, answer["__type"]) == (400, f"com.amazonaws.sqs#{code}"), answer


def raw(node, target, body, method="POST"):
    """A call as bytes."""
    head = f"{method} / HTTP/1.1\r\nHost: localhost\r\nX-Amz-Target: {target}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((HOST, node.sqs_port), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    first, _, rest = answer.partition(b"\r\n")
    return int(first.split()[1]), json.loads(rest.partition(b"\r\n\r\n")[2])


def test_the_limits_of_the_listener_hold(node):
    status, answer = raw(node, "AmazonSQS.SendMessage", b"", method="GET")
    assert (status, answer["__type"]) == (400, "com.amazonaws.sqs#InvalidAction")
    for head in (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Amz-Target: AmazonSQS.SendMessage\r\nContent-Length: 99999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"x" * 40_000 + b"\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: evil.example\r\nX-Amz-Target: AmazonSQS.ListQueues\r\nContent-Length: 2\r\n\r\n{}",
    ):
        with socket.create_connection((HOST, node.sqs_port), timeout=30) as connection:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 4"), answer
        assert b'"__type":"com.amazonaws.sqs#' in answer
    assert node.call("GET", "/health").status == 200


@pytest.fixture(scope="module")
def token(node, sqs):
    """A token for queues whose names begin with `mine`; from then on, calls need one."""
    sqs.create_queue(QueueName="mine-dead")
    sqs.create_queue(QueueName="yours-q")
    for name in ("mine-source", "yours-source"):
        policy = {"deadLetterTargetArn": "arn:aws:sqs:eu-west-1:000000000000:mine-dead", "maxReceiveCount": 3}
        sqs.create_queue(QueueName=name, Attributes={"RedrivePolicy": json.dumps(policy)})
    scopes = ["queue:mine:publish", "queue:mine:consume", "queue:mine:manage"]
    made = node.call("POST", "/tokens", {"name": "sqs", "scopes": scopes}).json
    id, secret = made["token"].removeprefix("dss1_").split("_")
    return id, secret


def test_signatures_are_checked_when_the_cluster_has_tokens(node, token):
    id, secret = token
    sqs = connected(node, id, secret)
    url = sqs.create_queue(QueueName="mine-1")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="m")
    (message,) = take(sqs, url, AttributeNames=["All"])
    assert message["Attributes"]["SenderId"] == id
    seen = [each.rpartition("/")[2] for each in sqs.list_queues()["QueueUrls"]]
    assert seen == ["mine-1", "mine-dead", "mine-source"]
    dead = sqs.get_queue_url(QueueName="mine-dead")["QueueUrl"]
    sources = sqs.list_dead_letter_source_queues(QueueUrl=dead)["queueUrls"]
    assert [each.rpartition("/")[2] for each in sources] == ["mine-source"]
    refused("AccessDenied", sqs.create_queue, QueueName="yours")
    refused("SignatureDoesNotMatch", connected(node, id, "wrong").list_queues)
    refused("InvalidClientTokenId", connected(node, "0" * 12, secret).list_queues)
    sns = connected(node, id, secret, "sns")
    topic = sns.create_topic(Name="mine-t")["TopicArn"]
    arn = arn_of(sqs, url)
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    sns.publish(TopicArn=topic, Message="m")
    assert [one["TopicArn"] for one in sns.list_topics()["Topics"]] == [topic]
    refused("AuthorizationError", sns.create_topic, Name="yours")
    refused("AuthorizationError", sns.subscribe, TopicArn=topic, Protocol="sqs", Endpoint=arn.replace("mine-1", "yours-q"))
    refused("SignatureDoesNotMatch", connected(node, id, "wrong", "sns").list_topics)
    refused(
        "AccessDenied", sqs.start_message_move_task, SourceArn=arn_of(sqs, dead), DestinationArn=arn.replace("mine-1", "yours-q")
    )
    status, answer = raw(node, "AmazonSQS.ListQueues", b"{}")
    assert (status, answer["__type"]) == (403, "com.amazonaws.sqs#MissingAuthenticationToken")
    assert "expired" in signed_at(node, token, -3600)
    assert "not yet current" in signed_at(node, token, 3600)
    assert signed_at(node, token, 0) == ""


def signed_at(node, token, offset_s):
    """The message of the refusal of a call that was signed by another clock; "" if it was accepted."""
    url = f"http://{HOST}:{node.sqs_port}/"
    request = AWSRequest("POST", url, {"X-Amz-Target": "AmazonSQS.ListQueues"}, b"{}")
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset_s)
    signer = SigV4Auth(Credentials(*token), "sqs", "eu-west-1")
    with mock.patch.object(botocore.auth, "get_current_datetime", return_value=now.replace(tzinfo=None)):
        signer.add_auth(request)
    answer = URLLib3Session().send(request.prepare())
    return "" if answer.status_code == 200 else json.loads(answer.content)["message"]
