"""The admin shows the live lock table."""

from __future__ import annotations

import asyncio
import re
from types import ModuleType

import pytest
from django.contrib.admin import site
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.test import override_settings
from django.urls import path

from dss_admin import live_admin, live_rows
from dss_admin.live_rows import LiveQuerySet
from dss_dev.live_rows import rows_here
from dss_locks.core import inspection
from dss_locks.core.commands import StartSession
from dss_locks.cycle_picture import CLIENTS_MAX, draw_cycle
from dss_locks.django_app import admin
from dss_locks.django_app.models import DelayRow, LockRow, SessionRow, WaiterRow
from dss_locks.django_app.rows import forced_rows, take_delays, take_locks, take_sessions, take_waiters


def shown(model, taken):
    """The rows as the admin shows them."""
    return list(LiveQuerySet(model, [row for row in taken if row is not None]))


@pytest.fixture
def busy(locks):
    locks.acquire("a", "k1", ttl_ms=5000, meta={"pid": 7})
    locks.acquire("b", "k2", ttl_ms=0)
    locks.acquire("b", "k1", wait_ms=20_000)
    locks.shared("c", "k2", "k3", wait_ms=10_000)
    locks.acquire("gone", "k4", ttl_ms=500, lock_delay_ms=10_000)
    locks.pass_ms(1000)
    return locks


def test_locks_with_their_leases(busy):
    rows = {row.key: row for row in shown(LockRow, take_locks(busy.table, busy.at_ms))}
    first = rows["k1"]
    assert (first.client, first.mode, first.expires_in_ms, first.age_ms, first.waiting) == ("a", "exclusive", 4000, 1000, 1)
    assert first.meta == '{"pid": 7}'
    assert rows["k2"].expires_in_ms is None


def test_waiting_requests_show_whom_they_wait_for(busy):
    first, second = shown(WaiterRow, take_waiters(busy.table, busy.at_ms))
    assert (first.client, first.keys, first.waits_for, first.gives_up_in_ms) == ("b", "k1", "a", 19_000)
    assert (second.client, second.keys, second.mode, second.chain) == ("c", "k2, k3", "shared", "c → b → a")


def test_lock_delays(busy):
    busy.pass_ms(2500)
    (row,) = shown(DelayRow, take_delays(busy.table, busy.at_ms))
    assert (row.key, row.lost_by, row.keeps_out, row.left_ms, row.delay_ms) == ("k4", "gone", "everybody", 7500, 10_000)


def test_forced_releases(busy):
    busy.force("k2", reason="hangs", by="alice")
    (row,) = forced_rows(inspection.audit(busy.table))
    assert (row.key, row.client, row.reason, row.by) == ("k2", "b", "hangs", "alice")


def test_rows_have_unique_primary_keys(busy):
    """The admin finds a row by its primary key. Names may contain any character."""
    busy.shared("x.y", "z")
    busy.shared("x", "y.z")
    ids = [row.pk for row in shown(LockRow, take_locks(busy.table, busy.at_ms))]
    assert len(set(ids)) == len(ids)


class Cluster:
    """A node that applies every command immediately, in the thread of the test."""

    def __init__(self, locks):
        self.locks = locks

    def machine(self, name):
        return self.locks.table

    def now_ms(self):
        return self.locks.at_ms

    async def submit(self, command, *, once=None):
        (result,) = self.locks.entry(command)
        return result


@pytest.fixture
def boss(db, client, busy, monkeypatch):
    node = Cluster(busy)
    monkeypatch.setattr("dss_api.running.node", lambda: node)
    monkeypatch.setattr(live_rows, "call_in_loop", rows_here)
    monkeypatch.setattr(live_admin, "await_in_loop", asyncio.run)
    urls = ModuleType("locks_admin_urls")
    urls.urlpatterns = [path("admin/", site.urls)]
    client.force_login(User.objects.create_superuser("boss", password="x"))
    with override_settings(ROOT_URLCONF=urls):
        yield client


@pytest.mark.parametrize(
    ("model", "count"),
    [("lockrow", 2), ("waiterrow", 2), ("delayrow", 1), ("forcedrow", 0), ("sessionrow", 0), ("deadlockrow", 0)],
)
def test_the_lists_are_shown(boss, model, count):
    response = boss.get(f"/admin/dss_locks/{model}/")
    assert len(response.context["cl"].result_list) == count
    assert boss.get(f"/admin/dss_locks/{model}/", {"q": "nobody"}).status_code == 200


def act(boss, model, action, row, **given):
    form = {"action": action, "_selected_action": [row.pk], **given}
    return boss.post(f"/admin/dss_locks/{model}/", form, follow=True).content.decode()


def test_a_forced_release_asks_first_and_needs_a_reason(boss, busy):
    row = next(row for row in shown(LockRow, take_locks(busy.table, busy.at_ms)) if row.key == "k1")
    asked = act(boss, "lockrow", "force_release", row)
    assert "Takes 1 lock away without asking the holder. 1 waiting request can be granted then." in asked
    assert "This field is required" in act(boss, "lockrow", "force_release", row, confirmed="1", reason=" ")
    assert busy.holders("k1") == [("a", "exclusive")], "released without a reason"
    page = act(boss, "lockrow", "force_release", row, confirmed="1", reason="hangs")
    assert '<li class="success">1 released.</li>' in page
    assert busy.holders("k1") == [("b", "exclusive")], "not granted to the next waiter"
    (forced,) = busy.table.forced_releases
    assert (forced.reason, forced.by, forced.client) == ("hangs", "user boss", "a")


def test_a_newer_grant_of_the_same_client_is_not_released(boss, busy, monkeypatch):
    row = next(row for row in shown(LockRow, take_locks(busy.table, busy.at_ms)) if row.key == "k1")
    seen = [one for one in take_locks(busy.table, busy.at_ms) if one]
    busy.release("a", "k1")
    busy.release("b", "k1")
    busy.acquire("a", "k1")
    page = act(boss, "lockrow", "force_release", row, confirmed="1", reason="hangs")
    assert "No longer in the list" in page
    # Also if it came after the list was read.
    monkeypatch.setattr(admin.LockRowAdmin, "rows", lambda page: seen)
    page = act(boss, "lockrow", "force_release", row, confirmed="1", reason="hangs")
    assert '<li class="warning">Nothing was done: the locks had ended by themselves.</li>' in page
    assert busy.holders("k1") == [("a", "exclusive")]


def test_an_action_says_which_of_the_confirmed_rows_are_gone(boss, busy):
    rows = shown(LockRow, take_locks(busy.table, busy.at_ms))
    form = {"action": "force_release", "_selected_action": [row.pk for row in rows]}
    assert "Takes 2 locks away" in boss.post("/admin/dss_locks/lockrow/", form).content.decode()
    busy.release("a", "k1")
    page = boss.post("/admin/dss_locks/lockrow/", {**form, "confirmed": "1", "reason": "hangs"}, follow=True).content.decode()
    assert '<li class="warning">No longer in the list: 1 of the 2 chosen rows.</li>' in page
    assert '<li class="success">1 released.</li>' in page
    assert busy.holders("k1") == [("b", "exclusive")], "the next holder was not confirmed"


def test_a_lock_that_has_ended_is_no_success(boss, busy, monkeypatch):
    row = next(row for row in shown(LockRow, take_locks(busy.table, busy.at_ms)) if row.key == "k1")
    (taken,) = (one for one in take_locks(busy.table, busy.at_ms) if one and one.key == "k1")
    busy.release("a", "k1")
    busy.release("b", "k1")
    monkeypatch.setattr(admin.LockRowAdmin, "rows", lambda page: [taken])
    page = act(boss, "lockrow", "force_release", row, confirmed="1", reason="hangs")
    assert '<li class="warning">Nothing was done: the locks had ended by themselves.</li>' in page
    assert "success" not in page


def test_a_wait_is_ended(boss, busy):
    row = next(row for row in shown(WaiterRow, take_waiters(busy.table, busy.at_ms)) if row.client == "b")
    assert "as if their time were over" in act(boss, "waiterrow", "cancel_wait", row)
    page = act(boss, "waiterrow", "cancel_wait", row, confirmed="1", reason="a deadlock outside")
    assert '<li class="success">1 ended.</li>' in page
    assert [waiter.client for waiter in busy.table.waiters.all()] == ["c"]
    page = act(boss, "waiterrow", "cancel_wait", row, confirmed="1", reason="again")
    assert "success" not in page


def test_sessions_are_listed_and_closed(boss, busy):
    (started,) = busy.entry(StartSession(client="d", ttl_ms=9000))
    session = started.body["session"]
    for number in range(12):
        busy.acquire("d", f"s{number:02}", session=session)
    (row,) = shown(SessionRow, take_sessions(busy.table, busy.at_ms))
    assert (row.client, row.key_count, row.expires_in_ms) == ("d", 12, 9000)
    assert row.keys.endswith("s09 and 2 more")
    assert "releases 12 locks" in act(boss, "sessionrow", "close", row)
    assert '<li class="success">1 closed.</li>' in act(boss, "sessionrow", "close", row, confirmed="1", reason="gone")
    assert not busy.table.holdings.sessions.by_id


def test_a_refused_deadlock_is_remembered_and_drawn(boss, busy):
    busy.acquire("a", "k2", wait_ms=5000)
    (refused,) = busy.table.scheduler.refused_deadlocks
    assert (refused.client, refused.keys, refused.length) == ("a", ("k2",), 2)
    response = boss.get("/admin/dss_locks/deadlockrow/")
    (row,) = response.context["cl"].result_list
    assert row.cycle == "a waits for k2, held by b\nb waits for k1, held by a"
    page = boss.get(f"/admin/dss_locks/deadlockrow/{quote(row.pk)}/change/").content.decode()
    assert "a waits for k2: b holds it" in page
    assert 'aria-label="The cycle"' in page
    busy.table.restore(busy.table.snapshot())
    assert len(busy.table.scheduler.refused_deadlocks) == 1, "what this node has seen is not part of the state"


def test_texts_in_the_picture_of_a_cycle_are_escaped():
    step = {"client": "<a>", "waits_for": "<k>", "held_by": "b", "because": "waits"}
    assert "<a>" not in draw_cycle([step])
    assert "<k>" not in draw_cycle([step])
    assert draw_cycle([step] * (CLIENTS_MAX + 1)) == "", "it is a list then"


def test_the_picture_of_two_clients_fits_a_phone():
    step = {"client": "a" * 30, "waits_for": "k" * 30, "held_by": "b", "because": "holds"}
    width = int(re.search(r'width="(\d+)"', draw_cycle([step, step]))[1])
    assert width < 300


def test_a_viewer_cannot_force_a_release(boss, busy, client):
    viewer = User.objects.create_user("viewer", password="x", is_staff=True)
    viewer.user_permissions.add(*Permission.objects.filter(codename__in=["view_lockrow"]))
    client.force_login(viewer)
    response = client.get("/admin/dss_locks/lockrow/")
    assert response.status_code == 200
    assert b"force_release" not in response.content


def test_durations_are_readable_and_filter_choices_unique(boss, busy):
    page = boss.get("/admin/dss_locks/lockrow/").content.decode()
    assert '<td class="field-expires_in_ms">4 s</td>' in page
    assert "until released" in page
    assert page.count("?mode=exclusive") == 1
    row = next(row for row in shown(LockRow, take_locks(busy.table, busy.at_ms)) if row.key == "k1")
    detail = boss.get(f"/admin/dss_locks/lockrow/{quote(row.pk)}/change/").content.decode()
    assert "4 s" in detail
    assert "pid" in detail


def test_the_picture_is_below_the_waiting_requests(boss, busy):
    busy.acquire("<script>", "k1", wait_ms=20_000)
    page = boss.get("/admin/dss_locks/waiterrow/").content.decode()
    assert "Who waits for whom" in page
    assert "c waits for k2 (shared): b holds it" in page
    assert "&lt;script&gt; waits for k1" in page
    assert "<script> waits" not in page
    assert "clients are shown" not in page


def test_no_picture_if_no_client_waits(boss, busy):
    busy.release("a", "k1")
    busy.release("b", "k2")
    assert "Who waits for whom" not in boss.get("/admin/dss_locks/waiterrow/").content.decode()


def test_a_truncated_list_says_so(boss, monkeypatch):
    assert "Only the first" not in boss.get("/admin/dss_locks/lockrow/").content.decode()
    monkeypatch.setattr(live_rows, "ROWS_MAX", 1)
    assert "Only the first 1 rows are shown" in boss.get("/admin/dss_locks/lockrow/").content.decode()
