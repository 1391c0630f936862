"""The admin's list of this node's lines, and this node's metrics."""

from __future__ import annotations

from types import ModuleType

import msgspec
import pytest
from django.contrib.admin import site
from django.contrib.auth.models import User
from django.test import override_settings
from django.urls import path
from prometheus_client import REGISTRY

from dss_cache import metrics, operations
from dss_cache.core.commands import GetRequest, PutRequest
from dss_cache.django_app import admin
from dss_dev.live_rows import rows_here


@pytest.fixture
def service(make_service):
    service = make_service()
    for number, state in enumerate("MES"):
        service.lines.install(f"k{number}", state, 10 + number, b'"v%d"' % number, {}, True, service.clock() - 5, "test")
    return service


def test_lines_most_recently_used_first(service):
    service.lines.used("k0")
    rows = admin.line_rows(admin.take_lines(service))
    assert [(row.key, row.state, row.version, row.value) for row in rows] == [
        ("k0", "M", 10, '"v0"'),
        ("k2", "S", 12, '"v2"'),
        ("k1", "E", 11, '"v1"'),
    ]
    assert (rows[0].age_ms, rows[0].bytes, rows[0].readable) == (5000, 4, True)


def test_a_long_or_broken_value_is_cut_for_the_list(service):
    service.lines.install("long", "S", 1, b"\xff" + b"x" * 1000, {}, True, 0.0, "test")
    assert len(admin.line_rows(admin.take_lines(service))[0].value) <= admin.VALUE_LENGTH_SHOWN


def test_the_list_is_shown(service, db, client, monkeypatch):
    monkeypatch.setattr("dss_api.running.node", lambda: service.node)
    monkeypatch.setattr(admin, "rows_from_loop", rows_here)
    urls = ModuleType("cache_admin_urls")
    urls.urlpatterns = [path("admin/", site.urls)]
    client.force_login(User.objects.create_superuser("boss", password="x"))
    with override_settings(ROOT_URLCONF=urls):
        assert len(client.get("/admin/dss_cache/linerow/").context["cl"].result_list) == 3
        assert len(client.get("/admin/dss_cache/linerow/", {"q": "k1"}).context["cl"].result_list) == 1
        assert client.get("/admin/dss_cache/linerow/add/").status_code == 403


async def test_every_metric_moves(make_cluster, monkeypatch):
    cluster = make_cluster(cache_max_items=2)
    service = cluster.caches["n1"]
    monkeypatch.setattr(metrics, "_service", service)

    def value(name, **labels):
        return REGISTRY.get_sample_value(name, labels)

    async def put(node, key):
        await operations.put(cluster.nodes[node], PutRequest(key=key, value=msgspec.Raw(b"1")))

    async def get(node, key):
        await operations.get(cluster.nodes[node], GetRequest(key=key))

    await put("n1", "a")
    await get("n1", "a")
    await put("n2", "b")
    await get("n1", "b")
    assert (value("cache_put_total"), value("cache_items"), value("cache_keys"), value("cache_dirty_items")) == (1, 2, 2, 2)
    assert (value("cache_get_total", hit="true"), value("cache_get_total", hit="false")) == (1, 1)
    await put("n2", "b")
    assert (value("cache_inval_total"), value("cache_items")) == (1, 1)
    await service.write_back._write_due()
    assert (value("cache_write_back_total"), value("cache_dirty_items")) == (1, 1)
    for key in "cd":
        await put("n2", key)
        await get("n1", key)
    assert value("cache_evict_total") == 1
    assert value("cache_memory_up") == 1
    service.write_back.trouble = "it is down"
    assert value("cache_memory_up") == 0


def test_zeros_without_a_service(monkeypatch):
    monkeypatch.setattr(metrics, "_service", None)
    assert REGISTRY.get_sample_value("cache_put_total") == 0
