"""Each action of the admin on each of three nodes: with and without permission, with and without a quorum. In one cluster.

The actions come from the registry of the admin. A new one fails here until it is in `SCENES`, which says what has to be there for it.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from django.contrib import admin

from dss_dev.admin_operator import Operator, path_of, rows_in
from dss_dev.local_cluster import POLL_S, LocalCluster, LocalNode, Reply, free_ports
from dss_dev.prepared_pages import ENVIRONMENT, prepare_pages

pytestmark = pytest.mark.cluster

PATIENCE_S = 60.0
PASSWORD = "long enough for a test"
TOPIC = {"max_attempts": 3, "backoff_ms": 0, "retention_ms": 3_600_000, "dedup_window_ms": 0, "keep_ms": 0, "max_bytes": 0}
TOPIC |= {"engine": "raft", "acks": "primary"}
#: what a page says when there is no majority
NO_QUORUM = re.compile("No quorum|Not known whether")
#: they work, or are refused for another reason, on a node without a majority: an election is for that case
LOCAL = {"dss_raft.memberrow do/start_election"}


class Scene(NamedTuple):
    """What an action needs.

    Attributes:
        calls: what is done before, on the node: (method, path, body). `{}` in texts is a name of its own.
        find: the search for the row.
        given: what its form asks for, beyond a reason.
        says: in the page afterwards, in green.
    """

    calls: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    find: str = "{}"
    given: dict[str, Any] = {}
    says: str = "1 "


PUBLISHED = ("POST", "/queue/publish", {"topic": "{}", "value": 1})
TAKEN = ("POST", "/queue/consume", {"topic": "{}", "group": "g", "visibility_ms": 600_000})
DEAD = (PUBLISHED, TAKEN, ("POST", "/queue/nack", {"topic": "{}", "group": "g", "msg_id": "*", "dead": True}))
CACHED = (("POST", "/cache/put", {"key": "{}", "value": 1}), ("GET", "/cache/get?key={}", {}))
A_USER = (("POST", "/users", {"name": "{}", "group": "viewer", "password": PASSWORD}),)

SCENES: dict[str, Scene] = {
    "dss_locks.lockrow force_release": Scene((("POST", "/lock/acquire", {"key": "{}", "client": "a", "ttl_ms": 0}),)),
    "dss_locks.waiterrow cancel_wait": Scene(
        (
            ("POST", "/lock/acquire", {"key": "{}", "client": "a", "ttl_ms": 0}),
            ("WAIT", "/lock/acquire", {"key": "{}", "client": "b-{}", "wait_ms": 20_000}),
        )
    ),
    "dss_locks.sessionrow close": Scene((("POST", "/session", {"client": "{}", "ttl_ms": 600_000}),)),
    "dss_queue.topicrow do/create": Scene(given={"topic": "{}", **TOPIC}),
    "dss_queue.topicrow change_settings": Scene((PUBLISHED,), given=TOPIC),
    "dss_queue.topicrow purge": Scene((PUBLISHED,)),
    "dss_queue.topicrow delete_dead": Scene(DEAD),
    "dss_queue.topicrow delete_topics": Scene((PUBLISHED,)),
    "dss_queue.backlogrow redrive_all": Scene(DEAD),
    "dss_queue.backlogrow delete_dead": Scene(DEAD),
    "dss_queue.backlogrow delete_groups": Scene((PUBLISHED, TAKEN)),
    "dss_queue.messagerow give_back": Scene((PUBLISHED, TAKEN)),
    "dss_queue.messagerow dead_letter": Scene((PUBLISHED, TAKEN)),
    "dss_queue.deadletterrow redrive": Scene(DEAD),
    "dss_queue.deadletterrow delete_dead": Scene(DEAD),
    "dss_cache.keyrow evict": Scene(CACHED, given={"nodes": "{node}"}),
    "dss_cache.keyrow invalidate": Scene(CACHED),
    "dss_raft.tokenrow revoke": Scene((("POST", "/tokens", {"name": "{}", "scopes": ["read"]}),)),
    "dss_raft.userrow sign_out": Scene(A_USER),
    "dss_raft.userrow disable": Scene(A_USER),
    "dss_raft.userrow enable": Scene(A_USER),
    "dss_raft.userrow delete": Scene(A_USER),
    "dss_raft.memberrow do/start_election": Scene(find="", given={"node": "{node}"}),
    # The members of the cluster are changed by a test of their own.
    "dss_raft.memberrow make_leader": Scene(find="{other}"),
    "dss_raft.memberrow remove": Scene(find="{other}"),
    "dss_raft.memberrow replace": Scene(find="{other}", given={"url": "http://127.0.0.1:1"}),
    "dss_raft.memberrow do/add": Scene(given={"id": "{}", "url": "http://127.0.0.1:1"}),
}
OF_MEMBERS = {name for name in SCENES if name.startswith("dss_raft.memberrow")}
#: actions that change nothing in the cluster
HARMLESS = {"dss_raft.auditrow export"}


def test_every_action_has_a_scene() -> None:
    found = {
        f"{model._meta.label_lower} {name}"
        for model, page in admin.site._registry.items()
        for name in (*(page.actions or ()), *(f"do/{one}" for one in page.list_actions))
    }
    assert found - HARMLESS == set(SCENES)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    found = LocalCluster(tmp_path_factory.mktemp("actions"), free_ports(3), {**ENVIRONMENT, "DSS_API_TOKEN": "a token"})
    prepare_pages(found)
    found.start()
    try:
        found.wait_ready()
        # The leader makes the first user once there is none.
        deadline = time.monotonic() + PATIENCE_S
        while not call(found.nodes[0], "GET", "/users").json["users"]:
            assert time.monotonic() < deadline, "there is no first user"
            time.sleep(POLL_S)
        for group in ("viewer", "operator"):
            body = {"name": group, "group": group, "password": PASSWORD}
            assert call(found.nodes[0], "POST", "/users", body).status == 200
        yield found
    finally:
        found.stop()


def call(node: LocalNode, method: str, path: str, body: dict[str, Any] | None = None) -> Reply:
    return node.call(method, path, body, headers=node.credentials)


@contextmanager
def prepared(cluster: LocalCluster, node: LocalNode, name: str, own: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """What the action needs is there. Yields the rows to choose, and what the form is given."""
    scene = SCENES[name]
    other = next(one.id for one in cluster.nodes if one is not node)
    names = {"{}": own, "{other}": other, "{node}": node.id}

    def named(value: Any) -> Any:
        for mark, text in names.items():
            value = value.replace(mark, text) if isinstance(value, str) else value
        return value

    last: Any = None
    with ThreadPoolExecutor(1) as waiting:
        for method, path, body in scene.calls:
            fields = {field: last["msg_id"] if value == "*" else named(value) for field, value in body.items()}
            if method == "WAIT":
                waiting.submit(call, node, "POST", path, fields)
                continue
            reply = call(node, method, named(path), fields or None)
            assert reply.status == 200, (name, reply.body)
            last = reply.json
        yield [], {field: named(value) for field, value in scene.given.items()}


def choose(operator: Operator, name: str, find: str) -> list[str]:
    """The row that the search finds; waits until it is there."""
    if " do/" in name:
        return []
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        status, page = operator.send("GET", f"{path_of(name)}?{urlencode({'q': find})}")
        assert status == 200
        if rows := rows_in(page):
            return rows[:1]
    raise AssertionError(f"{name}: no row for {find}")


def find_of(cluster: LocalCluster, node: LocalNode, name: str, own: str) -> str:
    other = next(one.id for one in cluster.nodes if one is not node)
    return SCENES[name].find.replace("{other}", other).replace("{}", own)


def may_not(node: LocalNode, name: str) -> str:
    """The user of the highest group that may not use the action."""
    (page,) = (page for model, page in admin.site._registry.items() if model._meta.label_lower == name.partition(" ")[0])
    return "viewer" if "operate" in page.act_needs.plain_scopes() else "operator"


def on_each(cluster: LocalCluster, work: Callable[[LocalNode], list[str]]) -> list[str]:
    """The faults that the work finds on each node. The nodes are used at the same time."""
    with ThreadPoolExecutor(len(cluster.nodes)) as threads:
        return [fault for found in threads.map(work, cluster.nodes) for fault in found]


def test_with_and_without_permission(cluster: LocalCluster) -> None:
    def work(node: LocalNode) -> list[str]:
        boss = Operator(node, "admin", "test")
        others = {name: Operator(node, name, PASSWORD) for name in ("viewer", "operator")}
        faults = []
        for number, name in enumerate(SCENES):
            if name in OF_MEMBERS:
                continue
            own = f"scene-{node.id}-{number}"
            with prepared(cluster, node, name, own) as (_, given):
                rows = choose(boss, name, find_of(cluster, node, name, own))
                refused = others[may_not(node, name)].act(name, rows, given)
                if "success" in refused:
                    faults.append(f"{node.id} {name}: {may_not(node, name)} may: {refused}")
                said = boss.act(name, rows, given)
                if not re.search(f"success: {SCENES[name].says}", said) or "error" in said or "warning" in said:
                    faults.append(f"{node.id} {name}: {said}")
        return faults

    assert on_each(cluster, work) == []
    _, trail = Operator(cluster.nodes[0], "admin", "test").send("GET", "/admin/dss_raft/auditrow/?q=a+test")
    assert trail.count(">a test<") > 50, "each action is recorded, with its reason"


def test_without_a_quorum(cluster: LocalCluster, wait_until: Callable[..., None]) -> None:
    """Each node in turn is alone. What there is to act on was made before."""
    boss = {node.id: Operator(node, "admin", "test") for node in cluster.nodes}
    chosen: dict[str, list[tuple[str, list[str], dict[str, Any]]]] = {}

    def make(node: LocalNode) -> list[str]:
        chosen[node.id] = []
        for number, name in enumerate(SCENES):
            own = f"alone-{node.id}-{number}"
            if name == "dss_locks.waiterrow cancel_wait":
                # Its wait would end in the meantime: any row that is chosen will do.
                chosen[node.id].append(("dss_locks.lockrow force_release", [], {}))
                continue
            with prepared(cluster, node, name, own) as (_, given):
                chosen[node.id].append((name, choose(boss[node.id], name, find_of(cluster, node, name, own)), given))
        return []

    assert on_each(cluster, make) == []
    faults = []
    for node in cluster.nodes:
        others = [one for one in cluster.nodes if one is not node]
        for other in others:
            assert other.process is not None
            other.process.send_signal(signal.SIGSTOP)
        try:
            # Until it has noticed that, a member that cannot be reached may be "the leader already".
            wait_until(lambda node=node: not call(node, "GET", "/raft/leader").json["leader_id"], node.log_tail)
            tasks = [one for one in chosen[node.id] if one[1] or " do/" in one[0]]
            with ThreadPoolExecutor(len(tasks)) as threads:

                def alone(one: tuple[str, list[str], dict[str, Any]], node: LocalNode = node) -> tuple[str, str]:
                    operator = Operator.__new__(Operator)
                    operator.node, operator.cookies, operator.token = node, dict(boss[node.id].cookies), boss[node.id].token
                    return one[0], operator.act(*one)

                for name, said in threads.map(alone, tasks):
                    is_told = bool(NO_QUORUM.search(said)) or name in LOCAL
                    if not is_told or ("success" in said and name not in LOCAL):
                        faults.append(f"{node.id} {name}: {said}")
        finally:
            for other in others:
                assert other.process is not None
                other.process.send_signal(signal.SIGCONT)
        cluster.wait_ready()
    assert faults == []


def test_members_are_changed(cluster: LocalCluster) -> None:
    """The leader is transferred, an election is started, a member is added and removed, on each node. Last, one that works is removed."""
    for node in cluster.nodes:
        boss = Operator(node, "admin", "test")
        viewer = Operator(node, "operator", PASSWORD)
        leader = call(node, "GET", "/raft/leader").json["leader_id"]
        to = next(one.id for one in cluster.nodes if one.id != leader)
        assert "success" not in viewer.act("dss_raft.memberrow make_leader", [to], {})
        assert "success: 1 made the leader" in boss.act("dss_raft.memberrow make_leader", [to], {})
        new = {"id": f"new-of-{node.id}", "url": "http://127.0.0.1:1"}
        assert "success" not in viewer.act("dss_raft.memberrow do/add", [], new)
        assert "success: 1 added as a learner" in boss.act("dss_raft.memberrow do/add", [], new)
        assert "success" not in viewer.act("dss_raft.memberrow remove", [new["id"]], {})
        assert "success: 1 replaced" in boss.act("dss_raft.memberrow replace", [new["id"]], {"url": "http://127.0.0.1:2"})
        assert "success: 1 removed" in boss.act("dss_raft.memberrow remove", [new["id"]], {})
        assert "success" not in viewer.act("dss_raft.memberrow do/start_election", [], {})
        assert "success: 1 election started" in boss.act("dss_raft.memberrow do/start_election", [], {"node": node.id})
        two = [one.id for one in cluster.nodes][:2]
        asked = boss.send("POST", "/admin/dss_raft/memberrow/", {"action": "remove", "_selected_action": two})[1]
        assert "Too many at once: 1 voter is left" in asked
