"""The query protocol at the SQS port: SQS as older clients speak it, and SNS. The tests of this module share one node."""

from __future__ import annotations

import http.client
import uuid
from urllib.parse import urlencode
from xml.etree import ElementTree

import pytest

from dss_dev.local_cluster import HOST, LocalCluster, free_ports
from dss_dev.prepared_pages import ENVIRONMENT

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def node(tmp_path_factory, prepare_pages):
    service, sqs = free_ports(2)
    cluster = LocalCluster(tmp_path_factory.mktemp("query"), [service], {**ENVIRONMENT, "DSS_SQS_PORT": str(sqs)})
    prepare_pages(cluster)
    cluster.start()
    try:
        cluster.wait_ready()
        cluster.nodes[0].sqs_port = sqs
        yield cluster.nodes[0]
    finally:
        cluster.stop()


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
    status, got = query(node, path, "GET", Action="ReceiveMessage", MaxNumberOfMessages="1", **names)
    assert (got["Body"], got["MessageId"], got["StringValue"]) == ("<é>", sent["MessageId"], "x y")
    status, done = query(node, path, Action="DeleteMessage", ReceiptHandle=got["ReceiptHandle"])
    assert (status, "RequestId" in done) == (200, True)
    status, counts = query(node, path, Action="GetQueueAttributes", AttributeName__1="ApproximateNumberOfMessagesNotVisible")
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
