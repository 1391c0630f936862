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

from dss_admin import live_rows
from dss_admin.live_rows import LiveQuerySet
from dss_api.errors import Refused
from dss_cache import metrics, operations
from dss_cache.core.commands import GetRequest, PutRequest
from dss_cache.django_app.models import KeyRow, LineRow
from dss_cache.django_app.operations import EvictLines, evict_lines
from dss_cache.django_app.rows import VALUE_LENGTH_SHOWN, take_keys, take_lines
from dss_dev.live_rows import rows_here


@pytest.fixture
def service(make_service):
    service = make_service()
    for number, state in enumerate("MES"):
        service.lines.install(f"k{number}", state, 10 + number, b'"v%d"' % number, {}, True, service.clock() - 5, "test")
    return service


def shown(model, taken):
    """The rows as the admin shows them."""
    return list(LiveQuerySet(model, [row for row in taken if row is not None]))


def test_lines_of_this_node(service):
    rows = shown(LineRow, take_lines(service))
    assert [(row.key, row.state, row.version, row.value) for row in rows] == [
        ("k0", "M", 10, '"v0"'),
        ("k1", "E", 11, '"v1"'),
        ("k2", "S", 12, '"v2"'),
    ]
    assert (rows[0].age_ms, rows[0].bytes, rows[0].readable) == (5000, 4, True)


def test_a_long_or_broken_value_is_cut_for_the_list(service):
    service.lines.install("long", "S", 1, b"\xff" + b"x" * 1000, {}, True, 0.0, "test")
    assert len(shown(LineRow, take_lines(service))[-1].value) <= VALUE_LENGTH_SHOWN


def test_the_list_is_shown(service, db, client, monkeypatch):
    monkeypatch.setattr("dss_api.running.node", lambda: service.node)
    monkeypatch.setattr(live_rows, "call_in_loop", rows_here)
    urls = ModuleType("cache_admin_urls")
    urls.urlpatterns = [path("admin/", site.urls)]
    client.force_login(User.objects.create_superuser("boss", password="x"))
    with override_settings(ROOT_URLCONF=urls):
        response = client.get("/admin/dss_cache/linerow/")
        assert len(response.context["cl"].result_list) == 3
        assert response.content.decode().count("?state=M") == 1, "each state once in the filter"
        assert len(client.get("/admin/dss_cache/linerow/", {"q": "k1"}).context["cl"].result_list) == 1
        assert len(client.get("/admin/dss_cache/linerow/", {"state": "E"}).context["cl"].result_list) == 1
        assert client.get("/admin/dss_cache/linerow/add/").status_code == 403


async def test_keys_and_their_lines_on_every_node(make_cluster):
    cluster = make_cluster()
    service = cluster.caches["n1"]
    await operations.put(cluster.nodes["n1"], PutRequest(key="a", value=msgspec.Raw(b"1")))
    await service.write_back._write_due()
    for name in ("n1", "n2"):
        await operations.get(cluster.nodes[name], GetRequest(key="a"))
    await operations.put(cluster.nodes["n2"], PutRequest(key="b", value=msgspec.Raw(b"2")))
    rows = {row.key: row for row in shown(KeyRow, take_keys(service, 0))}
    assert (rows["a"].state, rows["a"].registered, rows["a"].value) == ("cached", "n1, n2", "1")
    assert (rows["b"].state, rows["b"].owner, rows["b"].value) == ("not written back", "n2", "2")
    of_node, silent = await service.peers.ask_all_nodes("lines", '["a", "b"]', 2)
    states = {node: "".join(row["state"] for row in lines) for node, lines in of_node.items()}
    assert not silent
    assert states["n1"] == "SI"
    assert states["n2"] == "SM"
    evicted = await evict_lines(cluster.nodes["n1"], EvictLines(key="a", nodes=["n2"]))
    assert evicted.evicted == ["n2"]
    assert service.lines.get("a") is not None, "n1 was not named"
    with pytest.raises(Refused, match="n9 did not answer"):
        await evict_lines(cluster.nodes["n1"], EvictLines(key="a", nodes=["n1", "n9"]))
    assert service.lines.get("a") is None


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
