"""The cache section of the HTTP contract, line by line: through every entry point, on every node, with both backing stores.

With `TEST_CLUSTER_URLS`, at the nodes of a real cluster with its own backing store, also through a WebSocket: see
dss_dev/real_entry_points.py.
"""

from __future__ import annotations

import asyncio
import itertools
import time

import msgspec
import pytest
from django.db import connections

from dss_cache.django_app.django_store import DjangoStore
from dss_cache.django_app.models import StoredValue
from dss_cache.operations import OPERATIONS
from dss_cache.redis_store import RedisStore
from dss_cli.caches import show_transitions
from dss_cli.terminal import Terminal
from dss_dev.real_entry_points import NAMED, URLS, opened
from dss_dev.valkey_server import make_valkey
from dss_raft.config import ValueLimit

NODES = ("n1", "n2", "n3")
VALUE_BYTES_MAX = ValueLimit.value_bytes_max if URLS else 1000
#: how soon a loaded machine must read a value after it was put with a time to live
SOON_MS = 2500 if URLS else 1000
#: the nodes of a loaded machine have applied a call that was answered after this time
SETTLE_S = 10


class ClusterApi:
    """The API of three nodes: each call goes to the next node, or to the given one."""

    nodes = NODES

    def __init__(self, api, cluster) -> None:
        self.api = api
        self.cluster = cluster
        self.turn = itertools.cycle(NODES)
        self.nth = api.nth
        self.is_real, self.has_headers = api.is_real, api.has_headers

    def at(self, on):
        self.api.node = self.cluster.nodes[on or next(self.turn)]
        return self.api

    def post(self, path, on="", /, **fields):
        return self.at(on).post(path, **fields)

    def get(self, path_and_query, on=""):
        return self.at(on).get(path_and_query)

    def call(self, method, path_and_query, body, on=""):
        return self.at(on).call(method, path_and_query, body)

    def run(self, act):
        return self.api.run(act)

    def pass_ms(self, ms) -> None:
        async def act() -> None:
            self.cluster.pass_s(ms / 1000)
            await self.cluster.settle()

        self.run(act)

    async def pause(self, _) -> None:
        """Write back now what a test waits for."""
        self.run(self.cluster.caches["n1"].write_back._write_due)

    def write_back_all(self) -> None:
        """Write back all values, and drop the lines of all nodes."""

        async def act() -> None:
            for cache in self.cluster.caches.values():
                await cache.write_back._write_due()
            await self.cluster.settle()
            for cache in self.cluster.caches.values():
                assert not cache.directory.dirty
                cache.lines.flush("test")

        self.run(act)


class RealClusterApi(ClusterApi):
    """The API of the nodes of a real cluster."""

    def __init__(self, api) -> None:
        super().__init__(api, None)
        self.nodes = api.nodes
        self.turn = itertools.cycle(self.nodes)
        self.keys = set()

    def at(self, on):
        self.api.next = self.nodes.index(on or next(self.turn))
        return self.api

    def post(self, path, on="", /, **fields):
        self.keys.update(item["key"] for item in (fields, *fields.get("items", ())) if "key" in item)
        return super().post(path, on, **fields)

    def pass_ms(self, ms) -> None:
        time.sleep(ms / 1000)

    async def pause(self, seconds) -> None:
        await asyncio.sleep(seconds)

    def write_back_all(self) -> None:
        """Evict the lines of all keys of the test on all nodes, which writes back values, but not deletions."""
        for key, node in itertools.product(self.keys, self.nodes):
            assert self.at(node).post("/cache/evict", key=key)[0] == 200


@pytest.fixture(scope="module")
def valkey():
    with make_valkey() as server:
        yield server


@pytest.fixture
def store_of(request, tmp_path, django_db_blocker):
    """The backing store of a node: three SQLite files, or one Valkey."""
    if request.param == "own":
        yield None
        return
    if request.param == "redis":
        server = request.getfixturevalue("valkey")
        yield lambda name: RedisStore(server.connection_url, f"{tmp_path.name}:")
        return
    with django_db_blocker.unblock():
        for name in NODES:
            connections.databases[name] = {**connections.databases["default"], "NAME": tmp_path / name}
            with connections[name].schema_editor() as editor:
                editor.create_model(StoredValue)
            connections[name].close()
        yield DjangoStore
        for name in NODES:
            connections[name].close()
            del connections[name]
            del connections.databases[name]


@pytest.fixture(params=NAMED)
def api(request, fake_cluster, store_of):
    with opened(request.param, lambda: fake_cluster(store_of=store_of), OPERATIONS, lambda _: 0) as api:
        if api.is_real:
            yield RealClusterApi(api)
            return
        cluster = api.node
        yield ClusterApi(api, cluster)
        for cache in cluster.caches.values():
            api.run(cache.stop)


pytestmark = pytest.mark.parametrize("store_of", ["own"] if URLS else ["django", "redis"], indirect=True)


def test_put_and_get_on_every_node(api):
    n1, n2, _ = api.nodes
    status, answer, _ = api.post("/cache/put", n1, key="k", value={"a": [1, None, "ü"]})
    assert (status, answer["ok"], answer["state"], answer["index"]) == (200, True, "M", api.nth(2))
    version = answer["version"]
    for node in api.nodes:
        for status, got, _ in (api.post("/cache/get", node, key="k"), api.get("/cache/get?key=k", on=node)):
            assert status == 200
            assert (got["value"], got["found"], got["version"], got["node"]) == ({"a": [1, None, "ü"]}, True, version, node)
    assert (got["hit"], got["state"]) == (True, "S")
    newer = api.post("/cache/put", n2, key="k", value=2)[1]
    assert newer["version"] > version
    assert [api.get("/cache/get?key=k", on=node)[1]["value"] for node in api.nodes] == [2, 2, 2]


def test_values_are_read_from_the_backing_store(api):
    version = api.post("/cache/put", key="k", value={"a": 1})[1]["version"]
    api.write_back_all()
    for node in api.nodes:
        got = api.get("/cache/get?key=k", on=node)[1]
        assert (got["value"], got["version"], got["hit"]) == ({"a": 1}, version, False)
    api.post("/cache/delete", key="k")
    api.write_back_all()
    assert not api.get("/cache/get?key=k")[1]["found"]


def test_a_key_without_a_value(api):
    node = api.nodes[1]
    status, answer, _ = api.get("/cache/get?key=nobody", on=node)
    expected = {"value": None, "found": False, "hit": False, "version": 0, "state": "I", "node": node}
    assert status == 200
    assert expected.items() <= answer.items()


def test_null_is_a_value(api):
    api.post("/cache/put", key="k", value=None)
    api.write_back_all()
    answer = api.get("/cache/get?key=k")[1]
    assert (answer["value"], answer["found"]) == (None, True)


def test_a_ttl_ends_on_every_node(api):
    api.post("/cache/put", key="k", value=1, ttl_ms=str(SOON_MS))
    assert [api.get("/cache/get?key=k", on=node)[1]["found"] for node in api.nodes] == [True] * 3
    api.write_back_all()
    if not api.is_real:
        api.pass_ms(SOON_MS - 100)
        assert [api.get("/cache/get?key=k", on=node)[1]["found"] for node in api.nodes] == [True] * 3
    api.pass_ms(SOON_MS)
    assert [api.get("/cache/get?key=k", on=node)[1]["found"] for node in api.nodes] == [False] * 3


def test_compare_and_set(api):
    version = api.post("/cache/put", key="k", value=1)[1]["version"]
    newer = api.post("/cache/put", key="k", value=2, if_version=version)[1]["version"]
    status, answer, headers = api.post("/cache/put", key="k", value=3, if_version=version)
    assert (status, answer["ok"], answer["code"], answer["version"]) == (409, False, "version_conflict", newer)
    assert not api.has_headers or headers["content-type"].startswith("application/problem+json")
    assert api.get("/cache/get?key=k")[1]["value"] == 2


def test_if_version_of_a_key_that_was_never_written(api):
    status, answer, _ = api.post("/cache/put", key="k", value=1, if_version=7)
    assert (status, answer["code"], answer["version"]) == (409, "version_conflict", 0)
    assert api.post("/cache/delete", key="k", if_version=7)[1]["code"] == "version_conflict"
    assert api.post("/cache/put", key="k", value=1, if_version="0")[0] == 200


def test_delete(api):
    version = api.post("/cache/put", key="k", value=1)[1]["version"]
    assert api.post("/cache/delete", key="k", if_version=version + 1)[0] == 409
    status, answer, _ = api.post("/cache/delete", key="k", if_version=version)
    assert (status, answer["ok"], answer["deleted"], answer["index"]) == (200, True, True, api.nth(4))
    assert answer["version"] > version
    assert [api.get("/cache/get?key=k", on=node)[1]["found"] for node in api.nodes] == [False] * 3
    again = api.post("/cache/delete", key="k")[1]
    assert (again["ok"], again["deleted"]) == (True, False)


def test_add(api):
    assert api.post("/cache/add", key="k", value=1, ttl_ms=SOON_MS)[1]["ok"]
    status, answer, _ = api.post("/cache/add", key="k", value=2)
    assert (status, answer["ok"], answer["code"]) == (409, False, "exists")
    api.pass_ms(SOON_MS)
    assert api.post("/cache/add", key="k", value=3)[0] == 200
    assert api.get("/cache/get?key=k")[1]["value"] == 3


def test_incr(api):
    status, answer, _ = api.post("/cache/incr", key="n")
    assert (status, answer["ok"], answer["value"]) == (200, True, 1)
    api.write_back_all()
    assert api.post("/cache/incr", key="n", delta="-5")[1]["value"] == -4
    assert api.get("/cache/get?key=n")[1]["value"] == -4
    api.post("/cache/put", key="text", value="x")
    for rest in (lambda: None, api.write_back_all):
        rest()
        status, answer, _ = api.post("/cache/incr", key="text")
        assert (status, answer["code"]) == (400, "invalid")


def test_touch_mdelete_and_clear(api):
    api.post("/cache/put", key="k/1", value=1, ttl_ms=SOON_MS)
    status, answer, _ = api.post("/cache/touch", key="k/1", ttl_ms=60_000)
    assert (status, answer["ok"], answer["touched"]) == (200, True, True)
    api.pass_ms(SOON_MS)
    assert api.get("/cache/get?key=k/1")[1]["value"] == 1
    status, answer, _ = api.post("/cache/mdelete", keys=["k/1", "k/2"])
    assert (status, [item["deleted"] for item in answer["items"]]) == (200, [True, False])
    api.post("/cache/put", key="k/3", value=3)
    status, answer, _ = api.post("/cache/clear", prefix="k/")
    assert (status, answer["deleted"], answer["remaining"]) == (200, 1, 0)
    assert api.get("/cache/get?key=k/3")[1]["found"] is False
    status, answer, _ = api.post("/cache/incr", key="k/3", must_exist=True)
    assert (status, answer["code"]) == (404, "not_found")
    status, answer, _ = api.post("/cache/clear")
    assert (status, answer["code"], answer["field"]) == (400, "invalid", "prefix")


def test_mput_and_mget(api):
    items = [{"key": f"k{number}", "value": number} for number in range(3)]
    status, answer, _ = api.post("/cache/mput", items=[*items, {"key": "k0", "value": 9, "if_version": 1}])
    assert (status, answer["ok"]) == (200, True)
    assert [item["ok"] for item in answer["items"]] == [True, True, True, False]
    assert answer["items"][3]["code"] == "version_conflict"
    api.write_back_all()
    for node in api.nodes:
        status, answer, _ = api.post("/cache/mget", node, keys=["k2", "none", "k0"])
        assert [(one["key"], one["value"], one["found"]) for one in answer["items"]] == [
            ("k2", 2, True), ("none", None, False), ("k0", 0, True)
        ]  # fmt: skip


def test_lines_and_evict(api):
    n1, n2, n3 = api.nodes
    before = {row["key"] for row in api.get("/cache/lines?limit=1000", on=n2)[1]["lines"]}
    api.post("/cache/put", n1, key="k", value=1)
    for _ in range(2):
        api.get("/cache/get?key=k", on=n2)
    for node in api.nodes:
        deadline = time.monotonic() + SETTLE_S
        while True:
            answer = api.get("/cache/lines?key=k", on=node)[1]
            states = [(row["node"], row["state"]) for row in answer["lines"]]
            # A node of a real cluster shows its line as it was until it has applied the fetch.
            if states[0] == (n1, "S") or not api.is_real or time.monotonic() > deadline:
                break
        assert states == [(n1, "S"), (n2, "S"), (n3, "I")]
        assert answer["unreachable"] == []
    api.post("/cache/put", n2, key="later", value=1)
    own = api.get("/cache/lines?limit=1000", on=n2)[1]
    assert (own["count"], [row["key"] for row in own["lines"][:2]]) == (len(before) + 2, ["later", "k"])
    assert {"key", "state", "version", "age_ms"} <= own["lines"][0].keys()
    assert api.post("/cache/evict", n2, key="later")[1] == {"ok": True, "evicted": True, "written_back": True}
    assert api.post("/cache/evict", n2, key="k")[1]["written_back"] is False
    assert {row["key"] for row in api.get("/cache/lines?limit=1000", on=n2)[1]["lines"]} == before


def test_trace_on_every_node(api):
    n1, n2, n3 = api.nodes
    api.post("/cache/put", n1, key="k", value=1)
    api.get("/cache/get?key=k", on=n2)
    api.post("/cache/put", n3, key="k", value=2)
    # A real cluster may be slow: the write-back comes before the fetch.
    written_back_first = {(n1, "M", "E", "written back"), (n1, "E", "S", f"fetched by {n2}")}
    for node in api.nodes:
        rows = api.get("/cache/trace?key=k", on=node)[1]["transitions"]
        seen = {(row["node"], row["from"], row["to"], row["why"]) for row in rows}
        if written_back_first <= seen:
            seen = seen - written_back_first | {(n1, "M", "S", f"fetched by {n2}")}
        assert seen == {
            (n1, "I", "M", "put"), (n1, "M", "S", f"fetched by {n2}"), (n2, "I", "S", "fetched"),
            (n1, "S", "I", f"put on {n3}"), (n2, "S", "I", f"put on {n3}"), (n3, "I", "M", "put"),
        }  # fmt: skip
        assert all(row["at_ms"] > 0 and row["version"] > 0 for row in rows)


def test_stats(api):
    n1, n2, _ = api.nodes
    before = {node: api.get("/cache/stats", on=node)[1] for node in (n1, n2)}
    api.post("/cache/put", n1, key="k", value=1)
    for _ in range(4):
        api.get("/cache/get?key=k", on=n2)
    api.post("/cache/put", n1, key="k", value=2)
    answer = api.get("/cache/stats", on=n2)[1]
    expected = {"hits": 3, "misses": 1, "invalidations": 1, "evictions": 0, "items": 0, "write_backs": 0}
    assert {name: answer[name] - before[n2][name] for name in expected} == expected
    assert answer["hit_ratio"] == pytest.approx(answer["hits"] / (answer["hits"] + answer["misses"]), abs=1e-3)
    api.write_back_all()
    written_back = api.get("/cache/stats", on=n1)[1]["write_backs"] - before[n1]["write_backs"]
    assert written_back == 1 or (api.is_real and written_back > 1), "a real node also writes back values of other tests"


def test_the_demonstration(api):
    operations = {operation.name: operation for operation in OPERATIONS}

    async def call(number, operation, fields):
        offered = operations[operation]
        query = f"{offered.path}?key={fields['key']}"
        node = api.nodes[number - 1]
        status, answer, _ = api.get(query, node) if offered.method == "GET" else api.post(offered.path, node, **fields)
        assert status == 200
        return answer

    printed = []
    asyncio.run(show_transitions(call, 3, Terminal(printed.append, print), "k", api.pause))
    title, *rows = printed[:-1]
    assert title.split() == ["step", *api.nodes, "result"]
    assert [(row[:20].strip(), "".join(row[20:50].split())) for row in rows] == [
        ("start: delete it", "III"), ("put on 1", "MII"), ("read on 1", "MII"), ("write-back", "EII"), ("read on 2", "SSI"),
        ("read on 2 again", "SSI"), ("write on 3", "IIM"), ("read on 1", "SIS"), ("read on 1 again", "SIS"),
        ("evict on 1", "IIS"), ("evict on 3", "III"),
    ]  # fmt: skip
    assert [row.rsplit(", ", 1)[-1] for row in rows if "read on" in row] == ["hit", "miss", "hit", "miss", "hit"]


def is_json(body):
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "field"),
    [
        ("put", b'{"key": "k", "value": nope}', 400, "invalid", None),
        ("put", b'{"key": "k", "value": NaN}', 400, "invalid", None),
        ("put", b'{"key": "k", "value": "\xff"}', 400, "invalid", None),
        ("put", b'{"key": "k"}', 400, "invalid", "value"),
        ("put", b'{"value": 1}', 400, "invalid", "key"),
        ("put", b'{"key": "", "value": 1}', 400, "invalid", "key"),
        ("put", b'{"key": "a\\u0000", "value": 1}', 400, "invalid", "key"),
        ("put", b'{"key": "%s", "value": 1}' % (b"x" * 513), 400, "invalid", "key"),
        ("put", '{{"key": "{}", "value": 1}}'.format("ä" * 257).encode(), 400, "invalid", "key"),
        ("put", b'{"key": "k", "value": 1, "ttl_ms": -1}', 400, "invalid", "ttl_ms"),
        ("put", b'{"key": "k", "value": 1, "ttl_ms": "soon"}', 400, "invalid", "ttl_ms"),
        ("put", b'{"key": "k", "value": 1, "if_version": -1}', 400, "invalid", "if_version"),
        ("put", b'{"key": "k", "value": 1, "colour": "red"}', 400, "invalid", "colour"),
        ("put", b'{"key": "k", "value": "%s"}' % (b"x" * VALUE_BYTES_MAX), 413, "too_large", "value"),
        ("add", b'{"key": "k", "value": 1, "if_version": 0}', 400, "invalid", "if_version"),
        ("incr", b'{"key": "k", "delta": 1.5}', 400, "invalid", "delta"),
        ("incr", b'{"key": "k", "delta": 99999999999999999999}', 400, "invalid", "delta"),
        ("get", b"{}", 400, "invalid", "key"),
        ("mget", b'{"keys": []}', 400, "invalid", "keys"),
        ("mget", msgspec.json.encode({"keys": ["k"] * 1001}), 400, "invalid", "keys"),
        ("mget", b'{"keys": ["k", ""]}', 400, "invalid", "keys"),
        ("mput", b'{"items": []}', 400, "invalid", "items"),
        ("delete", b"[]", 400, "invalid", None),
    ],
)
def test_bad_input_is_refused_and_the_field_is_named(api, path, body, status, code, field):
    if not api.has_headers and not is_json(body):
        pytest.skip("there is no frame with such a request; tests/node/test_websocket.py has frames that are no JSON")
    got, answer, headers = api.call("POST", f"/cache/{path}", body)
    assert (got, answer["ok"], answer["code"]) == (status, False, code)
    if field:
        assert field in (answer["field"], answer["field"].partition("[")[0])
    assert not api.has_headers or headers["content-type"].startswith("application/problem+json")
    assert api.is_real or len(api.cluster.log) == 1, "only the leader's own first entry was proposed"


@pytest.mark.parametrize("query", ["get", "lines?key=", "trace", "trace?key=k&limit=0", "lines?limit=x", "stats?colour=red"])
def test_bad_queries_are_refused(api, query):
    if api.api.shows_forms and "?" not in query:
        pytest.skip("a page shows the form of the call")
    status, answer, _ = api.get(f"/cache/{query}")
    assert (status, answer["code"]) == (400, "invalid")
