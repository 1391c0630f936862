"""The admin shows the live lock table."""

from __future__ import annotations

import asyncio
from types import ModuleType

import pytest
from django.contrib.admin import site
from django.contrib.admin.utils import quote
from django.contrib.auth.models import Permission, User
from django.test import override_settings
from django.urls import path

from dss_admin import live_admin
from dss_dev.live_rows import rows_here
from dss_locks.core import inspection
from dss_locks.django_app import admin


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
    rows = {row.key: row for row in admin.lock_rows(admin.take_locks(busy.table, busy.at_ms))}
    first = rows["k1"]
    assert (first.client, first.mode, first.expires_in_ms, first.age_ms, first.waiting) == ("a", "exclusive", 4000, 1000, 1)
    assert first.meta == '{"pid": 7}'
    assert rows["k2"].expires_in_ms is None


def test_waiting_requests_show_whom_they_wait_for(busy):
    first, second = admin.waiter_rows(admin.take_waiters(busy.table, busy.at_ms))
    assert (first.client, first.keys, first.waits_for, first.gives_up_in_ms) == ("b", "k1", "a", 19_000)
    assert (second.client, second.keys, second.mode, second.chain) == ("c", "k2, k3", "shared", "c → b → a")


def test_lock_delays(busy):
    busy.pass_ms(2500)
    (row,) = admin.delay_rows(admin.take_delays(busy.table, busy.at_ms))
    assert (row.key, row.lost_by, row.keeps_out, row.left_ms, row.delay_ms) == ("k4", "gone", "everybody", 7500, 10_000)


def test_forced_releases(busy):
    busy.force("k2", reason="hangs", by="alice")
    (row,) = admin.forced_rows(inspection.audit(busy.table))
    assert (row.key, row.client, row.reason, row.by) == ("k2", "b", "hangs", "alice")


def test_rows_have_unique_primary_keys(busy):
    """The admin finds a row by its primary key. Names may contain any character."""
    busy.shared("x.y", "z")
    busy.shared("x", "y.z")
    ids = [row.pk for row in admin.lock_rows(admin.take_locks(busy.table, busy.at_ms))]
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
    monkeypatch.setattr(admin, "rows_from_loop", rows_here)
    monkeypatch.setattr(live_admin, "await_in_loop", asyncio.run)
    urls = ModuleType("locks_admin_urls")
    urls.urlpatterns = [path("admin/", site.urls)]
    client.force_login(User.objects.create_superuser("boss", password="x"))
    with override_settings(ROOT_URLCONF=urls):
        yield client


@pytest.mark.parametrize(("model", "count"), [("lockrow", 2), ("waiterrow", 2), ("delayrow", 1), ("forcedrow", 0)])
def test_the_lists_are_shown(boss, model, count):
    response = boss.get(f"/admin/dss_locks/{model}/")
    assert len(response.context["cl"].result_list) == count
    assert boss.get(f"/admin/dss_locks/{model}/", {"q": "nobody"}).status_code == 200


def test_a_forced_release_needs_a_reason(boss, busy):
    row = next(row for row in admin.lock_rows(admin.take_locks(busy.table, busy.at_ms)) if row.key == "k1")
    form = {"action": "force_release", "_selected_action": [row.pk]}
    boss.post("/admin/dss_locks/lockrow/", {**form, "reason": " "})
    assert busy.holders("k1") == [("a", "exclusive")], "released without a reason"
    response = boss.post("/admin/dss_locks/lockrow/", {**form, "reason": "hangs"}, follow=True)
    assert "1 released" in response.content.decode()
    assert busy.holders("k1") == [("b", "exclusive")], "not granted to the next waiter"
    (forced,) = busy.table.forced_releases
    assert (forced.reason, forced.by, forced.client) == ("hangs", "user boss", "a")


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
    row = next(row for row in admin.lock_rows(admin.take_locks(busy.table, busy.at_ms)) if row.key == "k1")
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
    monkeypatch.setattr(admin, "ROWS_MAX", 1)
    assert "Only the first 1 are shown" in boss.get("/admin/dss_locks/lockrow/").content.decode()
