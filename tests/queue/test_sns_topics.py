"""Topics of SNS in the replicated state, and their filter policies."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from dss_dev.queue_recount import recounted_usage
from dss_queue.core import sns_fanout
from dss_queue.core.commands import Consume
from dss_queue.core.filter_policies import VALUES_MAX, matches, parsed, values_of
from dss_queue.core.sns_topics import (
    CreateSnsTopic,
    DeleteSnsTopic,
    Notice,
    PublishToSns,
    Subscribe,
    Subscription,
    Unsubscribe,
)
from dss_queue.core.sqs_queues import GROUP, CreateQueue
from dss_queue.core.topic_commands import DeleteTopic
from dss_queue.sqs import sns_calls
from dss_queue.sqs.calls import Call
from dss_queue.sqs.errors import SqsError

RED = {"colour": {"DataType": "String", "StringValue": "red"}}


@pytest.fixture
def sending(desk):
    """A broker with a topic `t` and queues `a` and `b`. Afterwards all bytes are accounted for."""
    desk.do(CreateSnsTopic(sns_topic="t"))
    for name in ("a", "b"):
        desk.do(CreateQueue(topic=name))
    yield desk
    assert desk.broker.usage() == recounted_usage(desk.broker)
    desk.restart()
    assert desk.broker.usage() == recounted_usage(desk.broker)


def subscribe(desk, queue, topic="t", **attributes):
    return desk.do(Subscribe(sns_topic=topic, queue=queue, attributes={"RawMessageDelivery": "true", **attributes}))


def publish(desk, *messages, attributes=None, topic="t"):
    notices = [Notice(message, attributes or {}, {"sqs-sender": "me"}, {"MessageId": "1"}) for message in messages]
    return desk.do(PublishToSns(sns_topic=topic, notices=notices))


def take(desk, queue):
    command = Consume(topic=queue, group=GROUP, timeout_ms=0, visibility_ms=60_000, max_messages=100, create=False)
    return desk.do(command).body["messages"]


def bodies(desk, queue):
    return [json.loads(message["value"]) for message in take(desk, queue)]


def test_each_queue_gets_what_is_published(sending):
    desk = sending
    subscribe(desk, "a")
    subscribe(desk, "b")
    desk.restart()
    assert publish(desk, "1", "2").body == {"sent": 4}
    assert (bodies(desk, "a"), bodies(desk, "b")) == (["1", "2"], ["1", "2"])


def test_a_queue_is_subscribed_once(sending):
    desk = sending
    first = subscribe(desk, "a").body
    assert first["is_same"]
    assert subscribe(desk, "a").body == first
    assert subscribe(desk, "a", FilterPolicy="{}").body == {**first, "is_same": False}
    assert publish(desk, "1").body == {"sent": 1}


def test_a_subscription_filters_by_attributes(sending):
    desk = sending
    subscribe(desk, "a", FilterPolicy='{"colour": ["red"]}')
    subscribe(desk, "b", FilterPolicy='{"colour": [{"anything-but": "red"}]}')
    desk.restart()
    publish(desk, "1", attributes=RED)
    publish(desk, "2")
    (message,) = take(desk, "a")
    assert json.loads(message["value"]) == "1"
    headers = json.loads(message["headers"])
    assert (json.loads(headers[sns_fanout.ATTRIBUTES_HEADER]), headers["sqs-sender"]) == (RED, "me")
    assert take(desk, "b") == []


def test_without_raw_delivery_a_message_is_an_object(sending):
    desk = sending
    subscribe(desk, "a", RawMessageDelivery="false")
    publish(desk, "1", attributes=RED)
    assert [json.loads(body) for body in bodies(desk, "a")] == [
        {
            "Type": "Notification",
            "MessageId": "1",
            "Message": "1",
            "MessageAttributes": {"colour": {"Type": "String", "Value": "red"}},
        }
    ]


def test_the_delay_of_the_queue_holds(sending):
    desk = sending
    desk.do(CreateQueue(topic="late", attributes={"DelaySeconds": "5"}))
    subscribe(desk, "late")
    publish(desk, "1")
    assert take(desk, "late") == []
    desk.pass_ms(5_000)
    assert bodies(desk, "late") == ["1"]


def test_subscriptions_end(sending):
    desk = sending
    serial = subscribe(desk, "a").body["subscription"]
    subscribe(desk, "b")
    assert desk.do(Unsubscribe(sns_topic="t", subscription=serial)).body == {"ended": True}
    assert desk.do(Unsubscribe(sns_topic="t", subscription=serial)).body == {"ended": False}
    assert publish(desk, "1").body == {"sent": 1}
    desk.do(DeleteTopic(topic="b"))
    assert publish(desk, "2").body == {"sent": 0}
    assert desk.do(DeleteSnsTopic(sns_topic="t")).body == {"deleted": True}
    for refused in (publish(desk, "3"), subscribe(desk, "a")):
        assert refused.code == "not_found"


def test_a_full_queue_refuses_all_copies(sending):
    desk = sending
    subscribe(desk, "a")
    subscribe(desk, "b")
    maxima = desk.broker.limits.maxima
    before, maxima["queue_bytes_max"] = maxima["queue_bytes_max"], desk.broker.registry.account.used + 1500
    assert publish(desk, "1").code == "over_limit"
    assert desk.do(CreateSnsTopic(sns_topic="x" * 500)).code == "over_limit"
    maxima["queue_bytes_max"] = before
    assert (take(desk, "a"), take(desk, "b")) == ([], [])


def test_a_subscription_needs_a_policy_that_can_be_read():
    with pytest.raises(ValueError, match="JSON"):
        Subscribe(sns_topic="t", queue="a", attributes={"FilterPolicy": "{"})


def attribute(kind, text):
    return values_of({"a": {"DataType": kind, "StringValue": text}})


@pytest.mark.parametrize(
    ("condition", "matching", "others"),
    [
        ("x", [("String", "x")], [("String", "X"), ("Binary", "x")]),
        (5, [("Number", "5"), ("Number", "5.0e0")], [("String", "5"), ("Number", "5.1")]),
        ({"prefix": "ab"}, [("String", "abc")], [("String", "ba"), ("Number", "5")]),
        ({"suffix": "ab"}, [("String", "cab")], [("String", "abc")]),
        ({"equals-ignore-case": "Ab"}, [("String", "aB")], [("String", "b")]),
        ({"anything-but": ["x", 5]}, [("String", "y"), ("Number", "6")], [("String", "x"), ("Number", "5")]),
        ({"anything-but": {"prefix": "x"}}, [("String", "y")], [("String", "xy")]),
        ({"numeric": [">", 0, "<=", 5]}, [("Number", "5"), ("Number", "0.1")], [("Number", "0"), ("String", "1")]),
        ({"exists": True}, [("String", "x")], []),
        ("x", [("String.Array", '["y", "x"]')], [("String.Array", "no JSON"), ("String.Array", "[]")]),
        (True, [("String.Array", "[true]")], [("String.Array", "[1]"), ("String", "true")]),
        (None, [("String.Array", "[null]")], [("String", "null")]),
    ],
)
def test_conditions(condition, matching, others):
    policy = parsed(json.dumps({"a": [condition]}))
    assert all(matches(policy, attribute(*one)) for one in matching)
    assert not any(matches(policy, attribute(*one)) for one in [*others])
    assert not matches(policy, {})


def test_the_rest_of_a_long_array_does_not_match():
    policy = parsed('{"a": ["x"]}')
    assert matches(policy, attribute("String.Array", json.dumps(["y"] * (VALUES_MAX - 1) + ["x"])))
    assert not matches(policy, attribute("String.Array", json.dumps(["y"] * VALUES_MAX + ["x"])))


@pytest.mark.parametrize("text", ['["x", ["y"]]', '["x", {}]', '["x", ' + "[" * 500 + "]" * 501])
def test_a_nested_array_matches_nothing_at_any_depth(text):
    assert not matches(parsed('{"a": ["x"]}'), attribute("String.Array", text))


def test_one_of_several_conditions_holds():
    policy = parsed(
        '{"a": [{"anything-but": ["x", "y"]}, {"anything-but": ["y", "z"]}, {"numeric": ["=", 1]}, {"suffix": "yy"}]}'
    )
    assert [matches(policy, attribute("String", text)) for text in ("x", "y", "z", "yy")] == [True, False, True, True]


def test_a_call_has_a_bound_of_comparisons(sending, monkeypatch):
    desk = sending
    monkeypatch.setattr(sns_fanout, "COMPARISONS_MAX", 60)
    subscribe(desk, "a", FilterPolicy='{"a": [{"anything-but": ["1", "2"]}]}')
    subscribe(desk, "b", FilterPolicy='{"a": ["3"]}')
    ten = {"a": {"DataType": "String.Array", "StringValue": json.dumps([str(n) for n in range(10)])}}
    assert publish(desk, "1", "2", "3", attributes=ten).code == "over_limit"
    assert publish(desk, "1", "2", attributes=ten).body == {"sent": 4}


def test_a_parsed_policy_is_accounted_for():
    policy = json.dumps({"a": [{"anything-but": [str(n) for n in range(100)]}]})
    assert Subscription(1, "a", {"FilterPolicy": policy}).bytes > 1024 + 2 * len(policy) + 100 * 100


def test_all_attributes_of_a_policy_must_match():
    policy = parsed('{"a": ["x", "y"], "b": [{"exists": false}]}')
    y, z = ({"DataType": "String", "StringValue": text} for text in "yz")
    assert matches(policy, values_of({"a": y}))
    assert not matches(policy, values_of({"a": y, "b": z}))
    assert matches({}, {})


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"a": "x"}',
        '{"a": []}',
        '{"a": [["x"]]}',
        '{"a": [{"prefix": 1}]}',
        '{"a": [{"prefix": "x", "suffix": "y"}]}',
        '{"a": [{"cidr": "10.0.0.0/8"}]}',
        '{"a": [{"numeric": [">"]}]}',
        '{"a": [{"numeric": ["~", 1]}]}',
        '{"a": [{"numeric": [[], 1]}]}',
        '{"a": [{"numeric": [{}, 1]}]}',
        '{"a": [{"exists": 1}]}',
        '{"a": [{"anything-but": []}]}',
        '{"a": [{"anything-but": {"prefix": 1}}]}',
        json.dumps({str(i): ["x"] for i in range(6)}),
        json.dumps({"a": ["x"] * 151}),
        json.dumps({"a": [{"anything-but": ["x"] * 151}]}),
        json.dumps({"a": [{"anything-but": ["x"] * 20}], "b": ["y"] * 8}),
        "[" * 10_000,
    ],
)
def test_policies_that_are_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parsed(text)


async def test_a_page_describes_its_own_lines_only(sending, monkeypatch):
    desk = sending
    for topic in range(3):
        desk.do(CreateSnsTopic(sns_topic=f"t{topic}"))
        for queue in range(sns_calls.PAGE):
            subscribe(desk, f"q{queue}", topic=f"t{topic}")
    described, subscription_arn = [], sns_calls._subscription_arn
    monkeypatch.setattr(sns_calls, "_subscription_arn", lambda *given: described.append(given) or subscription_arn(*given))

    async def read_index():
        return None

    node = SimpleNamespace(machine=lambda name: desk.broker, read_index=read_index)
    monkeypatch.setattr(
        sns_calls, "caller", lambda: SimpleNamespace(access=SimpleNamespace(everything=True, prefixes=lambda *_: ()))
    )
    token, arns = "", []
    for count in (1, 2, 3):
        reply = await sns_calls.list_subscriptions(Call(node, "", SimpleNamespace(next_token=token), "", "r"))
        assert len(described) == count * sns_calls.PAGE
        arns += [line["SubscriptionArn"] for line in reply.body["Subscriptions"]]
        token = reply.body.get("NextToken", "")
    assert (len({*arns}), token) == (3 * sns_calls.PAGE, "")
    with pytest.raises(SqsError):
        await sns_calls.list_subscriptions(Call(node, "", SimpleNamespace(next_token="x"), "", "r"))
