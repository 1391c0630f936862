"""The admin's lists and their actions."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import Permission, User

from dss_admin import live_rows
from dss_admin.live_rows import LiveQuerySet
from dss_api.running import call_in_loop
from dss_dev.entry_points import opened
from dss_dev.live_rows import rows_here
from dss_queue.core.sqs_queues import Queue
from dss_queue.django_app.models import BacklogRow, ConsumerRow, DeadLetterRow, MessageRow, TopicRow
from dss_queue.django_app.rows import (
    VALUE_SHOWN_MAX,
    take_backlogs,
    take_consumers,
    take_dead_letters,
    take_messages,
    take_topics,
)
from dss_queue.operations import OPERATIONS


def shown(model, taken):
    """The rows as the admin shows them."""
    return list(LiveQuerySet(model, [row for row in taken if row is not None]))


def test_backlog_rows(desk):
    desk.publish(1, 2, 3, key="k")
    desk.publish(4)
    desk.publish(5, delay_ms=1000)
    desk.publish(6, topic="unread")
    desk.publish(7, topic="unread", delay_ms=1000)
    desk.take()
    rows = shown(BacklogRow, take_backlogs(desk.broker, desk.at_ms + 400))
    found = [(row.topic, row.group, row.ready, row.delayed, row.in_flight, row.dead, row.oldest_age_ms) for row in rows]
    assert found == [("t", "g", 3, 1, 1, 0, 400), ("unread", "", 1, 1, 0, 0, 400)]
    assert rows[0].pk != rows[1].pk


def test_messages_in_flight(desk):
    desk.publish("x" * 5000, key="k")
    desk.publish(1)
    desk.take(visibility_ms=1000, node="n2")
    desk.take(group="other")
    rows = shown(MessageRow, take_messages(desk.broker, desk.at_ms + 400))
    assert [(row.topic, row.group, row.key, row.state, row.attempt, row.node) for row in rows] == [
        ("t", "g", "k", "in flight", 1, "n2"),
        ("t", "g", "", "ready", 0, ""),
        ("t", "other", "k", "in flight", 1, "n1"),
        ("t", "other", "", "ready", 0, ""),
    ]
    assert (rows[0].due_in_ms, rows[0].age_ms) == (600, 400)
    assert len(rows[0].value) == VALUE_SHOWN_MAX + 1
    assert rows[0].pk != rows[1].pk


def test_dead_letter_rows_with_history(desk):
    (msg_id,) = desk.publish("a")
    desk.take()
    desk.pass_ms(5)
    desk.nack(msg_id)
    desk.take()
    desk.nack(msg_id, dead=True)
    (row,) = shown(DeadLetterRow, take_dead_letters(desk.broker))
    assert (row.msg_id, row.reason, row.attempts, row.value) == (msg_id, "rejected", 2, '"a"')
    first, second = row.history.splitlines()
    assert first.startswith("attempt 1: nack after 5 ms, by n1")
    assert second.startswith("attempt 2: rejected")


@pytest.fixture
def api(local_node):
    """A node whose state the admin shows."""
    with opened("json", local_node, OPERATIONS, lambda node: len(node.waiting)) as api:
        yield api


@pytest.fixture
def boss(db, client, api, monkeypatch):
    monkeypatch.setattr(live_rows, "call_in_loop", lambda take: call_in_loop(lambda: rows_here(take)))
    client.defaults["SERVER_NAME"] = "localhost"
    client.force_login(User.objects.create_superuser("boss", password="x"))
    return client


def take(api, **fields):
    return api.post("/queue/consume", **{"topic": "t", "group": "g", "timeout_ms": 0, **fields})[1]


def act(client, model, action, *rows, **given):
    """What the page says after the action was confirmed. Before that it asks, and does nothing."""
    form = {"action": action, "_selected_action": [row.pk for row in rows], **given}
    asked = client.post(f"/admin/dss_queue/{model}/", form)
    assert asked.status_code == 200
    assert "confirmed" in asked.content.decode()
    answer = client.post(f"/admin/dss_queue/{model}/", {**form, "confirmed": "1", "reason": "a test"}, follow=True)
    return answer.content.decode()


def test_the_lists_are_shown(boss, api):
    api.post("/queue/publish", topic="t", messages=[{"value": 1}, {"value": 2}])
    take(api)
    dead = take(api)
    api.post("/queue/nack", topic="t", group="g", msg_id=dead["msg_id"], dead=True)
    for model in ("topicrow", "backlogrow", "consumerrow", "messagerow", "deadletterrow"):
        response = boss.get(f"/admin/dss_queue/{model}/")
        (row,) = response.context["cl"].result_list
        assert boss.get(f"/admin/dss_queue/{model}/{row.pk}/change/").status_code == 200
    by_age = boss.get("/admin/dss_queue/backlogrow/?o=8")
    assert by_age.context["cl"].get_ordering(by_age.wsgi_request, by_age.context["cl"].root_queryset)[0] == "oldest_age_ms", (
        "a column for people sorts, too"
    )


def test_redrive_returns_a_dead_letter_to_the_queue(boss, api):
    api.post("/queue/publish", topic="t", value=1)
    got = take(api)
    api.post("/queue/nack", topic="t", group="g", msg_id=got["msg_id"], dead=True)
    page = act(boss, "deadletterrow", "redrive", *shown(DeadLetterRow, take_dead_letters(api.node.broker)))
    assert '<li class="success">1 returned to the queue.</li>' in page
    again = take(api)
    assert (again["msg_id"], again["attempt"]) == (got["msg_id"], 1)


def test_dead_letters_are_deleted_one_by_one_and_all_together(boss, api):
    for value in (1, 2, 3):
        api.post("/queue/publish", topic="t", value=value)
        got = take(api)
        api.post("/queue/nack", topic="t", group="g", msg_id=got["msg_id"], dead=True)
    first, *_ = shown(DeadLetterRow, take_dead_letters(api.node.broker))
    assert "1 deleted" in act(boss, "deadletterrow", "delete_dead", first)
    assert first.msg_id not in [row.msg_id for row in shown(DeadLetterRow, take_dead_letters(api.node.broker))]
    assert "2 dead letters deleted" in act(boss, "topicrow", "delete_dead", *shown(TopicRow, take_topics(api.node.broker, 0)))
    assert not list(take_dead_letters(api.node.broker))


def test_groups_and_topics_are_deleted(boss, api):
    for group in ("g", "h"):
        api.put("/queue/group", topic="t", group=group)
    api.post("/queue/publish", topic="u", value=1)
    rows = shown(BacklogRow, take_backlogs(api.node.broker, 0))
    assert "2 groups deleted" in act(boss, "backlogrow", "delete_groups", *rows)
    assert not api.node.broker.topics["t"].groups
    assert "2 topics deleted" in act(boss, "topicrow", "delete_topics", *shown(TopicRow, take_topics(api.node.broker, 0)))
    assert not api.node.broker.topics


def test_a_topic_is_created_changed_and_purged(boss, api):
    settings = {"max_attempts": 3, "backoff_ms": 0, "retention_ms": 60_000, "dedup_window_ms": 0, "keep_ms": 0, "max_bytes": 0}
    settings |= {"engine": "raft", "acks": "primary"}
    form = {**settings, "topic": "new", "reason": "a test", "confirmed": "1"}
    assert "1 created" in boss.post("/admin/dss_queue/topicrow/do/create/", form, follow=True).content.decode()
    assert "This topic exists" in boss.post("/admin/dss_queue/topicrow/do/create/", form).content.decode()
    assert boss.get("/admin/dss_queue/topicrow/do/nothing/").status_code == 404
    api.post("/queue/publish", topic="new", messages=[{"value": 1}, {"value": 2}])
    (row,) = shown(TopicRow, take_topics(api.node.broker, 0))
    assert "max_attempts 3" in row.settings
    assert "retention 1 min 0 s" in row.settings
    assert "1 changed" in act(boss, "topicrow", "change_settings", row, **{**settings, "max_attempts": 4})
    assert api.node.broker.topics["new"].messages.settings.max_attempts == 4
    assert "2 messages deleted" in act(boss, "topicrow", "purge", row)
    again = boss.post(
        "/admin/dss_queue/topicrow/",
        {"action": "purge", "_selected_action": [row.pk], "confirmed": "1", "reason": "again"},
        follow=True,
    ).content.decode()
    assert '<li class="warning">Nothing was done: there were no messages.</li>' in again


def test_an_old_form_changes_only_the_settings_that_were_changed_in_it(boss, api):
    api.put("/queue/topic", topic="t", max_attempts=3, retention_ms=60_000)
    (row,) = shown(TopicRow, take_topics(api.node.broker, 0))
    form = {"action": "change_settings", "_selected_action": [row.pk]}
    page = boss.post("/admin/dss_queue/topicrow/", form).content.decode()
    hidden = dict(re.findall(r'<input type="hidden" name="(initial-[a-z_]+)" value="([^"]*)"', page))
    hidden.setdefault("initial-dead_letter_topic", "")
    assert (hidden["initial-max_attempts"], hidden["initial-retention_ms"], len(hidden)) == ("3", "60000", 9)
    seen = {name.removeprefix("initial-"): text for name, text in hidden.items()}
    api.put("/queue/topic", topic="t", max_attempts=3, retention_ms=5000, dead_letter_topic="dead")
    sent = {**form, **hidden, **seen, "max_attempts": "4", "confirmed": "1", "reason": "a test"}
    assert "1 changed" in boss.post("/admin/dss_queue/topicrow/", sent, follow=True).content.decode()
    settings = api.node.broker.topics["t"].messages.settings
    assert (settings.max_attempts, settings.retention_ms, settings.dead_letter_topic) == (4, 5000, "dead")


def test_the_settings_of_an_sqs_queue_are_changed_by_sqs_only(boss, api):
    api.put("/queue/topic", topic="t", max_attempts=3)
    api.node.broker.topics["t"].queue = Queue({}, {}, 0, 0)
    (row,) = shown(TopicRow, take_topics(api.node.broker, 0))
    form = {"action": "change_settings", "_selected_action": [row.pk], "confirmed": "1", "reason": "a test"}
    settings = {"max_attempts": 9, "backoff_ms": 0, "retention_ms": 0, "dedup_window_ms": 0, "keep_ms": 0, "max_bytes": 0}
    assert "SetQueueAttributes" in boss.post("/admin/dss_queue/topicrow/", {**form, **settings}).content.decode()
    assert api.node.broker.topics["t"].messages.settings.max_attempts == 3


def test_requeue_returns_a_message_in_flight_to_the_queue(boss, api):
    api.post("/queue/publish", topic="t", value=1)
    first = take(api)
    rows = shown(MessageRow, take_messages(api.node.broker, 0))
    assert "1 given back" in act(boss, "messagerow", "give_back", *rows)
    second = take(api)
    assert (second["msg_id"], second["attempt"]) == (first["msg_id"], 2)
    ack = {"topic": "t", "group": "g", "msg_id": first["msg_id"]}
    assert api.post("/queue/ack", **ack, receipt=first["receipt"])[1]["code"] == "stale_receipt"
    stale = boss.post(
        "/admin/dss_queue/messagerow/",
        {"action": "give_back", "_selected_action": [rows[0].pk], "reason": "late", "confirmed": "1"},
        follow=True,
    ).content.decode()
    assert "1 given back" in stale, "it is in flight again, under another receipt"
    rows = shown(MessageRow, take_messages(api.node.broker, 0))
    asked = boss.post("/admin/dss_queue/messagerow/", {"action": "dead_letter", "_selected_action": [rows[0].pk]})
    assert "not in flight" in asked.content.decode()
    take(api)
    assert "1 moved to the dead letters" in act(boss, "messagerow", "dead_letter", *rows)
    (dead,) = shown(DeadLetterRow, take_dead_letters(api.node.broker))
    assert dead.reason == "rejected"


def test_messages_in_every_state(desk):
    """Each unfinished message of each group once, in its state, however it got there."""
    desk.publish(1, 2, 3, key="k")
    desk.publish(4)
    desk.publish(5, delay_ms=1000)
    desk.publish(6, topic="unread")
    desk.publish(7, topic="unread", delay_ms=1000)
    done = desk.take()[0]["msg_id"]
    desk.ack(done)
    failed = desk.take()[0]["msg_id"]
    desk.nack(failed, delay_ms=5000)
    desk.take(group="h")
    rows = shown(MessageRow, take_messages(desk.broker, desk.at_ms))
    found = [(row.topic, row.group, row.value, row.state, row.attempt) for row in rows]
    stats = {(line.topic, line.group): line for line in shown(BacklogRow, take_backlogs(desk.broker, desk.at_ms))}
    for (topic, group), line in stats.items():
        states = [state for one_topic, one_group, _, state, _ in found if (one_topic, one_group) == (topic, group)]
        counts = [states.count("ready"), states.count("delayed"), states.count("in flight")]
        assert counts == [line.ready, line.delayed, line.in_flight], (topic, group, found)


def test_consumers_that_wait_and_work(desk):
    desk.publish(1)
    desk.take(node="n2")
    desk.take(group="idle", timeout_ms=5000)
    rows = shown(ConsumerRow, take_consumers(desk.broker, desk.at_ms))
    assert [(row.group, row.doing, row.until_ms) for row in rows if row.group == "g"] == [("g", "works", None)]


def test_a_user_may_view_without_permission_to_act(boss, api):
    api.post("/queue/publish", topic="t", value=1)
    take(api)
    viewer = User.objects.create_user("viewer", password="x", is_staff=True)
    viewer.user_permissions.add(*Permission.objects.filter(codename="view_messagerow"))
    boss.force_login(viewer)
    response = boss.get("/admin/dss_queue/messagerow/")
    assert len(response.context["cl"].result_list) == 1
    assert b"give_back" not in response.content
    (row,) = take_messages(api.node.broker, 0)
    assert row.receipt
    page = boss.get(f"/admin/dss_queue/messagerow/{row.row_id}/change/")
    assert page.status_code == 200
    assert row.receipt not in page.content.decode()
    assert "receipt" not in page.content.decode().lower()
    assert boss.get(f"/admin/dss_queue/messagerow/?receipt__startswith={row.receipt[:1]}").status_code in (302, 400)
    assert boss.get("/admin/dss_queue/topicrow/do/create/").status_code == 403
