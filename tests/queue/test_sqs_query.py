"""The older query protocol of SQS and SNS: forms and XML, translated from and to the JSON protocol."""

from __future__ import annotations

from urllib.parse import quote, urlencode
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_queue.sqs.dialect import SNS, SQS
from dss_queue.sqs.errors import SqsError
from dss_queue.sqs.query import DEPTH_MAX, FIELDS_MAX, NAME_BYTES_MAX, answer_of, error_of, fields_of, form_of, request_of


def read(body, query=b""):
    return form_of(fields_of(query, body))


@pytest.mark.parametrize(
    ("form", "request_"),
    [
        (
            "QueueName=q&Attribute.1.Name=DelaySeconds&Attribute.1.Value=5",
            {"QueueName": "q", "Attributes": {"DelaySeconds": "5"}},
        ),
        ("AttributeName.2=b&AttributeName.1=a&AttributeName.10=c", {"AttributeNames": ["a", "b", "c"]}),
        ("AttributeName=All", {"AttributeNames": ["All"]}),
        ("Tag.1.Key=k&Tag.1.Value=", {"Tags": {"k": ""}, "tags": {"k": ""}}),
        (
            "MessageAttribute.1.Name=n&MessageAttribute.1.Value.DataType=String&MessageAttribute.1.Value.StringValue=a%26b",
            {"MessageAttributes": {"n": {"DataType": "String", "StringValue": "a&b"}}},
        ),
        (
            "Action=DeleteMessageBatch&DeleteMessageBatchRequestEntry.1.Id=a&DeleteMessageBatchRequestEntry.1.ReceiptHandle=r",
            {"Action": "DeleteMessageBatch", "Entries": [{"Id": "a", "ReceiptHandle": "r"}]},
        ),
        ("Attributes.entry.1.key=FilterPolicy&Attributes.entry.1.value=%7B%7D", {"Attributes": {"FilterPolicy": "{}"}}),
        ("PublishBatchRequestEntries.member.1.Id=a", {"PublishBatchRequestEntries": [{"Id": "a"}]}),
        ("Tags.member.1.Key=k&Tags.member.1.Value=v", {"Tags": {"k": "v"}, "tags": {"k": "v"}}),
    ],
)
def test_forms_are_requests(form, request_):
    assert request_of(read(form.encode())) == request_


@pytest.mark.parametrize(
    "form",
    [
        "a=1&a.b=2",
        "a.b=2&a=1&a.b.c=3",
        "Attribute.x.Name=n",
        "Attribute.1.Value=v",
        "Attribute.1=v",
        "Action=A&ARequestEntry.1=v",
        ".".join("a" * (DEPTH_MAX + 1)) + "=1",
        "&".join(f"a{i}=1" for i in range(FIELDS_MAX + 1)),
        "a=%ff",
        "a=%",
        "a=%4",
        "a=%zz",
        "a=%%4141",
        "a=%\n41",
        "a=%\r41\n",
        "%z=1",
        "a." * NAME_BYTES_MAX + "=1",
    ],
)
def test_forms_that_are_refused(form):
    with pytest.raises(SqsError) as refusal:
        request_of(read(form.encode()))
    assert refusal.value.status == 400


PARTS = st.sampled_from(
    ["Attribute", "Attributes", "Tags", "AttributeName", "ARequestEntry", "1", "2", "Name", "entry", "member", ""]
)
NAMES = st.lists(PARTS, min_size=1, max_size=5).map(".".join)


@given(st.dictionaries(NAMES, st.text(max_size=3), max_size=5))
def test_no_form_is_an_error_of_the_node(form):
    refusals = []
    try:
        request_of({**form, "Action": "A"})
    except SqsError as refusal:
        refusals.append(refusal.status)
    assert refusals in ([], [400])


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=20)), max_size=5))
def test_forms_are_read_as_urllib_writes_them(pairs):
    assert read(urlencode(pairs).encode()) == dict(pairs)
    # Other clients leave some of these as they are.
    written = "&".join(f"{quote(name, safe='')}={quote(text, safe='=@:')}" for name, text in pairs if name)
    assert read(written.encode()) == {name: text for name, text in pairs if name}


def test_form_and_line_ends():
    assert read(b"a=b=c%3D=\n%0A_%0D%0A+ &&b", b"x=1") == {"x": "1", "a": "b=c==\n\n_\r\n  ", "b": ""}


def found(xml, path):
    root = ElementTree.fromstring(xml)
    names = "/".join(f"{{*}}{name}" for name in path.split("/"))
    return [one.text for one in root.findall(names)]


def test_answers_are_xml():
    body = {
        "Messages": [
            {
                "Body": "<&\r\x00",
                "Attributes": {"SenderId": "me"},
                "MessageAttributes": {"a": {"DataType": "String", "StringValue": "x"}},
            }
        ]
    }
    xml = answer_of("ReceiveMessage", body, "id", SQS)
    assert found(xml, "ReceiveMessageResult/Message/Body") == ["<&\r\ufffd"]
    assert found(xml, "ReceiveMessageResult/Message/Attribute/Value") == ["me"]
    assert found(xml, "ReceiveMessageResult/Message/MessageAttribute/Value/StringValue") == ["x"]
    assert found(xml, "ResponseMetadata/RequestId") == ["id"]
    batch = {"Successful": [{"Id": "a"}], "Failed": [{"Id": "b", "SenderFault": True}]}
    xml = answer_of("DeleteMessageBatch", batch, "id", SQS)
    assert found(xml, "DeleteMessageBatchResult/DeleteMessageBatchResultEntry/Id") == ["a"]
    assert found(xml, "DeleteMessageBatchResult/BatchResultErrorEntry/SenderFault") == ["true"]
    xml = answer_of("ListQueueTags", {"Tags": {"k": "v"}}, "id", SQS)
    assert found(xml, "ListQueueTagsResult/Tag/Key") == ["k"]
    xml = answer_of("ListTopics", {"Topics": [{"TopicArn": "arn"}]}, "id", SNS)
    assert found(xml, "ListTopicsResult/Topics/member/TopicArn") == ["arn"]
    xml = answer_of("GetTopicAttributes", {"Attributes": {"TopicArn": "arn"}}, "id", SNS)
    assert found(xml, "GetTopicAttributesResult/Attributes/entry/value") == ["arn"]


def test_refusals_are_xml():
    xml = error_of("AWS.SimpleQueueService.NonExistentQueue", "no <queue>", True, "id", SQS)
    assert found(xml, "Error/Code") == ["AWS.SimpleQueueService.NonExistentQueue"]
    assert (found(xml, "Error/Message"), found(xml, "Error/Type")) == (["no <queue>"], ["Sender"])
