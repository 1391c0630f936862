"""The query protocol at the SQS port: SQS as older clients speak it, and SNS. The tests of this module share one node."""

from __future__ import annotations

import http.client
import json
import uuid
from urllib.parse import urlencode
from xml.etree import ElementTree

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from dss_dev.local_cluster import HOST

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def node(sqs_node):
    return sqs_node


def query(node, path="/", method="POST", headers=None, **form):
    """(status, texts of the answer by element)."""
    connection = http.client.HTTPConnection(HOST, node.sqs_port, timeout=30)
    given = {name.replace("__", "."): text for name, text in form.items()}
    try:
        if method == "GET":
            connection.request("GET", f"{path}?{urlencode(given)}", headers=headers or {})
        else:
            head = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
            connection.request("POST", path, urlencode(given), head)
        answer = connection.getresponse()
        texts = {}
        for element in ElementTree.fromstring(answer.read()).iter():
            texts.setdefault(element.tag.rpartition("}")[2], element.text)
        return answer.status, texts
    finally:
        connection.close()


@pytest.fixture
def path(node):
    """The path of a new queue."""
    name = f"q-{uuid.uuid4().hex[:12]}"
    status, made = query(
        node, Action="CreateQueue", QueueName=name, Attribute__1__Name="VisibilityTimeout", Attribute__1__Value="60"
    )
    assert status == 200
    return made["QueueUrl"].partition(str(node.sqs_port))[2]


def test_send_receive_delete(node, path):
    attribute = {
        "MessageAttribute__1__Name": "a",
        "MessageAttribute__1__Value__DataType": "String",
        "MessageAttribute__1__Value__StringValue": "x y",
    }
    status, sent = query(node, path, Action="SendMessage", MessageBody="<é>", **attribute)
    assert (status, len(sent["MD5OfMessageBody"])) == (200, 32)
    names = {"AttributeName__1": "All", "MessageAttributeName__1": "All"}
    status, got = query(node, path, Action="ReceiveMessage", MaxNumberOfMessages="1", **names)
    assert (got["Body"], got["MessageId"], got["StringValue"]) == ("<é>", sent["MessageId"], "x y")
    status, done = query(node, path, Action="DeleteMessage", ReceiptHandle=got["ReceiptHandle"])
    assert (status, "RequestId" in done) == (200, True)
    status, counts = query(
        node, path, "GET", Action="GetQueueAttributes", AttributeName__1="ApproximateNumberOfMessagesNotVisible"
    )
    assert (counts["Name"], counts["Value"]) == ("ApproximateNumberOfMessagesNotVisible", "0")


def test_a_batch(node, path):
    entries = {
        "SendMessageBatchRequestEntry__1__Id": "a",
        "SendMessageBatchRequestEntry__1__MessageBody": "m",
        "SendMessageBatchRequestEntry__2__Id": "b",
        "SendMessageBatchRequestEntry__2__MessageBody": "\x01",
    }
    status, sent = query(node, path, Action="SendMessageBatch", **entries)
    assert (status, sent["Id"], sent["Code"], sent["SenderFault"]) == (200, "a", "InvalidMessageContents", "true")


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        ({}, 400, "MissingAction"),
        ({"Action": "Nothing"}, 400, "InvalidAction"),
        ({"Action": "SendMessage"}, 400, "MissingParameter"),
        ({"Action": "GetQueueUrl", "QueueName": "none"}, 400, "AWS.SimpleQueueService.NonExistentQueue"),
        ({"Action": "ReceiveMessage", "QueueUrl": "q", "MaxNumberOfMessages": "x"}, 400, "InvalidParameterValue"),
        ({"Action": "CreateQueue", "QueueName": "q", "Attribute__1": "x"}, 400, "InvalidParameterValue"),
    ],
)
def test_refusals(node, form, status, code):
    answer = query(node, **form)
    assert (answer[0], answer[1]["Code"]) == (status, code)


@pytest.mark.parametrize("header", ["Origin", "Referer", "Sec-Fetch-Site"])
def test_pages_of_other_sites_are_refused(node, header):
    for method in ("GET", "POST"):
        status, answer = query(node, "/", method, {header: "https://evil.example"}, Action="CreateQueue", QueueName="q")
        assert (status, answer["Code"]) == (403, "AccessDenied")


# ------------------------------------------------------------------------- SNS


@pytest.mark.parametrize("action", ["PurgeQueue", "DeleteQueue", "ReceiveMessage", "SendMessage"])
def test_a_get_without_a_signature_changes_nothing(node, path, action):
    query(node, path, Action="SendMessage", MessageBody="m")
    status, answer = query(node, path, "GET", Action=action, MessageBody="n")
    assert (status, answer["Code"]) == (400, "InvalidAction")
    _, counts = query(node, path, "GET", Action="GetQueueAttributes", AttributeName__1="ApproximateNumberOfMessages")
    assert counts["Value"] == "1"


def connected(node, service):
    return boto3.client(
        service,
        endpoint_url=f"http://{HOST}:{node.sqs_port}",
        region_name="eu-west-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(retries={"max_attempts": 0}),
    )


@pytest.fixture(scope="module")
def sns(node):
    return connected(node, "sns")


@pytest.fixture(scope="module")
def sqs(node):
    return connected(node, "sqs")


@pytest.fixture
def topic(sns):
    return sns.create_topic(
        Name=f"t-{uuid.uuid4().hex[:12]}", Attributes={"FifoTopic": "false"}, Tags=[{"Key": "a", "Value": "b"}]
    )["TopicArn"]


@pytest.fixture
def queues(sqs):
    """(URL, ARN) of two new queues."""
    urls = [sqs.create_queue(QueueName=f"q-{uuid.uuid4().hex[:12]}")["QueueUrl"] for _ in range(2)]
    return [(url, f"arn:aws:sqs:eu-west-1:000000000000:{url.rpartition('/')[2]}") for url in urls]


def refused(code, call, **fields):
    with pytest.raises(ClientError) as caught:
        call(**fields)
    assert caught.value.response["Error"]["Code"] == code, caught.value.response


def bodies(sqs, url):
    answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"])
    return [(one["Body"], one.get("MessageAttributes")) for one in answer.get("Messages", [])]


def test_a_topic_sends_to_its_queues(sns, sqs, topic, queues):
    (raw, raw_arn), (wrapped, wrapped_arn) = queues
    policy = json.dumps({"colour": ["red", {"prefix": "dark"}]})
    attributes = {"RawMessageDelivery": "true", "FilterPolicy": policy}
    given = {"TopicArn": topic, "Protocol": "sqs", "Endpoint": raw_arn, "Attributes": attributes}
    first = sns.subscribe(**given, ReturnSubscriptionArn=True)
    assert sns.subscribe(**given)["SubscriptionArn"] == first["SubscriptionArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=wrapped_arn)
    colour = {"colour": {"DataType": "String", "StringValue": "red"}}
    sent = sns.publish(TopicArn=topic, Message="one", Subject="s", MessageAttributes=colour)
    batch = sns.publish_batch(
        TopicArn=topic,
        PublishBatchRequestEntries=[
            {"Id": "a", "Message": "two", "MessageAttributes": {"colour": {"DataType": "String", "StringValue": "dark blue"}}},
            {"Id": "b", "Message": "three"},
            {"Id": "c", "Message": "\x01"},
        ],
    )
    assert [one["Id"] for one in batch["Successful"]] == ["a", "b"]
    assert [(one["Id"], one["SenderFault"]) for one in batch["Failed"]] == [("c", True)]
    assert [(body, given["colour"]["StringValue"]) for body, given in bodies(sqs, raw)] == [("one", "red"), ("two", "dark blue")]
    envelopes = [json.loads(body) for body, _ in bodies(sqs, wrapped)]
    assert [one["Message"] for one in envelopes] == ["one", "two", "three"]
    assert (envelopes[0]["MessageId"], envelopes[0]["Subject"]) == (sent["MessageId"], "s")
    listed = sns.list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
    assert [(one["Endpoint"], one["Protocol"]) for one in listed] == [(raw_arn, "sqs"), (wrapped_arn, "sqs")]
    assert first["SubscriptionArn"] in [one["SubscriptionArn"] for one in sns.list_subscriptions()["Subscriptions"]]
    sns.unsubscribe(SubscriptionArn=first["SubscriptionArn"])
    sns.publish(
        TopicArn=topic, Message=json.dumps({"default": "d", "sqs": "four"}), MessageStructure="json", MessageAttributes=colour
    )
    assert bodies(sqs, raw) == []
    assert [json.loads(body)["Message"] for body, _ in bodies(sqs, wrapped)] == ["four"]
    assert topic in [one["TopicArn"] for one in sns.list_topics()["Topics"]]
    assert sns.get_topic_attributes(TopicArn=topic)["Attributes"]["SubscriptionsConfirmed"] == "1"
    sns.delete_topic(TopicArn=topic)
    refused("NotFound", sns.publish, TopicArn=topic, Message="five")


def test_long_lists_have_pages(sns):
    name = uuid.uuid4().hex[:8]
    made = {sns.create_topic(Name=f"{name}-{i}")["TopicArn"] for i in range(101)}
    pages = list(sns.get_paginator("list_topics").paginate())
    assert len(pages) > 1
    assert made <= {one["TopicArn"] for page in pages for one in page["Topics"]}


def test_calls_of_sns_that_are_refused(sns, topic, queues):
    ((_, arn), _) = queues
    wrong = "InvalidParameter"
    refused(wrong, sns.create_topic, Name="a b")
    refused(wrong, sns.create_topic, Name="t", Attributes={"FifoTopic": "true"})
    refused(wrong, sns.create_topic, Name="t", Attributes={"Colour": "red"})
    refused(wrong, sns.publish, TopicArn="t", Message="m")
    refused("NotFound", sns.publish, TopicArn=topic + "x", Message="m")
    refused(wrong, sns.publish, TopicArn=topic, Message="")
    refused(wrong, sns.publish, TopicArn=topic, Message="m" * 300_000)
    refused(wrong, sns.publish, TopicArn=topic, Message="m", MessageStructure="json")
    refused(wrong, sns.publish, TopicArn=topic, Message="m", Subject="\n")
    refused(wrong, sns.publish, TopicArn=topic, Message="m", MessageAttributes={"a": {"DataType": "Other", "StringValue": "x"}})
    refused(wrong, sns.subscribe, TopicArn=topic, Protocol="http", Endpoint="http://localhost")
    refused("NotFound", sns.subscribe, TopicArn=topic, Protocol="sqs", Endpoint=arn + "x")
    refused("NotFound", sns.subscribe, TopicArn=topic + "x", Protocol="sqs", Endpoint=arn)
    refused(wrong, sns.subscribe, TopicArn=topic, Protocol="sqs", Endpoint="q")
    for attributes in (
        {"FilterPolicy": "{"},
        {"FilterPolicyScope": "MessageBody"},
        {"RawMessageDelivery": "1"},
        {"RedrivePolicy": "{}"},
    ):
        refused(wrong, sns.subscribe, TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes=attributes)
    refused(wrong, sns.unsubscribe, SubscriptionArn="s")
    sns.unsubscribe(SubscriptionArn=f"{topic}:none")
    refused("InvalidAction", sns.add_permission, TopicArn=topic, Label="l", AWSAccountId=["1"], ActionName=["Publish"])
