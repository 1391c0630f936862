"""The admin's lists and their actions."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission, User

from dss_api.running import call_in_loop
from dss_dev.entry_points import opened
from dss_dev.live_rows import rows_here
from dss_queue.django_app import admin
from dss_queue.django_app.admin import (
    VALUE_SHOWN_MAX,
    backlog_rows,
    dead_letter_rows,
    in_flight_rows,
    take_backlogs,
    take_dead_letters,
    take_in_flight,
)
from dss_queue.operations import OPERATIONS


def test_backlog_rows(desk):
    desk.publish(1, 2, 3, key="k")
    desk.publish(4)
    desk.publish(5, delay_ms=1000)
    desk.publish(6, topic="unread")
    desk.publish(7, topic="unread", delay_ms=1000)
    desk.take()
    rows = backlog_rows(take_backlogs(desk.broker, desk.at_ms + 400))
    shown = [(row.topic, row.group, row.ready, row.delayed, row.in_flight, row.dead, row.oldest_age_ms) for row in rows]
    assert shown == [("t", "g", 3, 1, 1, 0, 400), ("unread", "", 1, 1, 0, 0, 400)]
    assert rows[0].pk != rows[1].pk


def test_in_flight_rows(desk):
    desk.publish("x" * 5000, key="k")
    desk.publish(1)
    desk.take(visibility_ms=1000, node="n2")
    desk.take(group="other")
    rows = in_flight_rows(take_in_flight(desk.broker), desk.at_ms + 400)
    assert [(row.topic, row.group, row.key, row.attempt, row.node) for row in rows] == [
        ("t", "g", "k", 1, "n2"),
        ("t", "other", "k", 1, "n1"),
    ]
    assert (rows[0].visible_in_ms, rows[0].age_ms) == (600, 400)
    assert len(rows[0].value) == VALUE_SHOWN_MAX + 1
    assert rows[0].pk != rows[1].pk


def test_dead_letter_rows_with_history(desk):
    (msg_id,) = desk.publish("a")
    desk.take()
    desk.pass_ms(5)
    desk.nack(msg_id)
    desk.take()
    desk.nack(msg_id, dead=True)
    (row,) = dead_letter_rows(take_dead_letters(desk.broker))
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
    monkeypatch.setattr(admin, "rows_from_loop", lambda take: call_in_loop(lambda: rows_here(take)))
    client.defaults["SERVER_NAME"] = "localhost"
    client.force_login(User.objects.create_superuser("boss", password="x"))
    return client


def take(api, **fields):
    return api.post("/queue/consume", **{"topic": "t", "group": "g", "timeout_ms": 0, **fields})[1]


def act(client, model, action, *rows):
    form = {"action": action, "_selected_action": [row.pk for row in rows]}
    return client.post(f"/admin/dss_queue/{model}/", form, follow=True).content.decode()


def test_the_lists_are_shown(boss, api):
    api.post("/queue/publish", topic="t", messages=[{"value": 1}, {"value": 2}])
    take(api)
    dead = take(api)
    api.post("/queue/nack", topic="t", group="g", msg_id=dead["msg_id"], dead=True)
    for model in ("backlogrow", "inflightrow", "deadletterrow"):
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
    page = act(boss, "deadletterrow", "redrive", *dead_letter_rows(take_dead_letters(api.node.broker)))
    assert "1 returned to the queue" in page
    again = take(api)
    assert (again["msg_id"], again["attempt"]) == (got["msg_id"], 1)


def test_groups_and_topics_are_deleted(boss, api):
    for group in ("g", "h"):
        api.put("/queue/group", topic="t", group=group)
    api.post("/queue/publish", topic="u", value=1)
    rows = backlog_rows(take_backlogs(api.node.broker, 0))
    assert "2 groups deleted" in act(boss, "backlogrow", "delete_groups", *rows)
    assert not api.node.broker.topics["t"].groups
    assert "2 topics deleted" in act(boss, "backlogrow", "delete_topics", *backlog_rows(take_backlogs(api.node.broker, 0)))
    assert not api.node.broker.topics


def test_requeue_returns_a_message_in_flight_to_the_queue(boss, api):
    api.post("/queue/publish", topic="t", value=1)
    first = take(api)
    rows = in_flight_rows(take_in_flight(api.node.broker), 0)
    assert "1 returned to the queue" in act(boss, "inflightrow", "requeue", *rows)
    second = take(api)
    assert (second["msg_id"], second["attempt"]) == (first["msg_id"], 2)
    ack = {"topic": "t", "group": "g", "msg_id": first["msg_id"]}
    assert api.post("/queue/ack", **ack, receipt=first["receipt"])[1]["code"] == "stale_receipt"


def test_a_user_may_view_without_permission_to_act(boss, api):
    api.post("/queue/publish", topic="t", value=1)
    take(api)
    viewer = User.objects.create_user("viewer", password="x", is_staff=True)
    viewer.user_permissions.add(*Permission.objects.filter(codename="view_inflightrow"))
    boss.force_login(viewer)
    response = boss.get("/admin/dss_queue/inflightrow/")
    assert len(response.context["cl"].result_list) == 1
    assert b"requeue" not in response.content
