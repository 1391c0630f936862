"""Tokens on real clusters: made on one node, valid on all, and ended on all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dss_dev.local_cluster import POLL_S, LocalCluster, LocalNode, Reply, manage
from dss_dev.websocket import connect

pytestmark = pytest.mark.cluster

PATIENCE_S = 60


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def make(node: LocalNode, name: str, *scopes: str, token: str = "", **fields: Any) -> dict[str, Any]:
    reply = node.call("POST", "/tokens", {"name": name, "scopes": scopes, **fields}, headers=bearer(token) if token else {})
    assert reply.status == 200, reply.body
    return reply.json


def test_a_token_on_three_nodes(cluster: LocalCluster) -> None:
    one, two, three = cluster.nodes
    assert one.call("GET", "/raft/status").status == 200, "on loopback, a cluster without tokens is open"
    made = make(one, "operator", "all")
    operator = made["token"]
    assert operator.startswith(f"dss1_{made['token_id']}_")
    secrets = [operator.rpartition("_")[2]]
    for node in cluster.nodes:
        # The first token closes every node as soon as it has applied it.
        until(lambda node=node: node.call("GET", "/raft/status").status == 401)
        assert node.call("GET", "/raft/status", headers=bearer(operator)).status == 200
        assert node.call("GET", "/health").status == node.call("GET", "/ready").status == 200
        assert node.call("GET", "/metrics").status == 401

    # A narrow token, made on one node, works on another, and only for what it covers.
    narrow = make(two, "shop", "queue:orders:publish", "queue:orders:consume", "locks:shop/", token=operator)
    secrets.append(narrow["token"].rpartition("_")[2])
    shop = bearer(narrow["token"])
    until(lambda: three.call("POST", "/queue/publish", {"topic": "orders", "value": 1}, headers=shop).status == 200)
    for path, body in (
        ("/queue/publish", {"topic": "invoices", "value": 1}),
        ("/cache/put", {"key": "orders", "value": 1}),
        ("/queue/purge", {"topic": "orders"}),
        ("/raft/start_election", {}),
        ("/tokens", {"name": "more", "scopes": ["all"]}),
    ):
        refused = three.call("POST", path, body, headers=shop)
        assert (refused.status, refused.json["code"]) == (403, "forbidden")

    sessions_belong_to_their_token(one, operator, shop)
    revocation_ends_what_is_open(one, two, three, operator, narrow, shop)

    # A rotation changes the secret everywhere; the one before it stays valid as long as asked.
    rotated = one.call("POST", "/tokens/rotate", {"id": made["token_id"], "overlap_ms": 3_600_000}, headers=bearer(operator)).json
    secrets.append(rotated["token"].rpartition("_")[2])
    for node in (two, three):
        until(lambda node=node: node.call("GET", "/raft/leader", headers=bearer(rotated["token"])).status == 200)
        assert node.call("GET", "/raft/leader", headers=bearer(operator)).status == 200

    expired = make(one, "short", "read", token=operator, expires_in_ms=1)
    until(lambda: two.call("GET", "/raft/leader", headers=bearer(expired["token"])).status == 401)

    # After a failover, and on a node that starts again: closed from its first answer on.
    leader = cluster.leader()
    leader.kill()
    others = [node for node in cluster.nodes if node is not leader]
    for node in others:
        until(node.is_ready)
        assert node.call("POST", "/lock/acquire", {"key": "a", "client": "c"}, headers=bearer(operator)).status == 200
    leader.start()
    until(lambda: answers(leader) is not None)
    assert answers(leader) == 401
    until(leader.is_ready)
    assert leader.call("GET", "/tokens", headers=bearer(operator)).json["tokens"][0]["name"] == "operator"

    the_audit_trail_is_complete(leader, made["token_id"])
    commands_need_no_token(leader, operator)
    assert cluster.stop() == []
    no_secret_is_kept(cluster, secrets)


def answers(node: LocalNode) -> int | None:
    try:
        return node.call("GET", "/raft/status").status
    except OSError:
        return None


def sessions_belong_to_their_token(node: LocalNode, operator: str, shop: dict[str, str]) -> None:
    other = make(node, "other shop", "locks:", token=operator)["token"]
    session = node.call("POST", "/session", {"client": "c"}, headers=shop).json["session"]
    requests = node.call("POST", "/request/session", {}, headers=shop).json["session"]
    acquire = {"key": "shop/1", "client": "c", "session": session, "request_id": f"{requests}:1"}
    assert node.call("POST", "/lock/acquire", acquire, headers=shop).status == 200
    assert node.call("POST", "/session/renew", {"session": session}, headers=shop).status == 200
    for path, body in (
        ("/session/renew", {"session": session}),
        ("/session/close", {"session": session}),
        # its id in the lock table, which can be guessed and is shown by /lock/status
        ("/session/close", {"session": session.partition("~")[0]}),
        ("/lock/acquire", {"key": "shop/2", "client": "c", "session": session.partition("~")[0]}),
        ("/lock/acquire", {"key": "shop/2", "client": "c", "request_id": f"{requests}:2"}),
    ):
        refused = node.call("POST", path, body, headers=bearer(other))
        assert (refused.status, refused.json["code"]) == (403, "forbidden"), path
    assert node.call("DELETE", f"/request/session?session={requests}", headers=bearer(other)).status == 403
    assert node.call("POST", "/session/close", {"session": session}, headers=shop).json["closed"]
    assert node.call("DELETE", f"/request/session?session={requests}", headers=shop).json["closed"]


def revocation_ends_what_is_open(
    one: LocalNode,
    two: LocalNode,
    three: LocalNode,
    operator: str,
    narrow: dict[str, Any],
    shop: dict[str, str],
) -> None:
    polled: list[Reply] = []
    body = {"topic": "orders-2", "group": "g", "timeout_ms": 20_000}
    poll = threading.Thread(target=lambda: polled.append(two.call("POST", "/queue/consume", body, headers=shop)))
    poll.start()
    with connect(three.websocket_url, ssl=three.tls, additional_headers=shop) as connection:
        connection.send(json.dumps({"id": 1, "op": "locks.watch", "request": {"prefix": "shop/"}}))
        assert "event" in json.loads(connection.recv(PATIENCE_S))
        connection.send(json.dumps({"id": 2, "op": "locks.watch", "request": {"prefix": "sho"}}))
        assert json.loads(connection.recv(PATIENCE_S))["code"] == "forbidden"
        until(lambda: (two.status() or {}).get("waiting") == 1)
        assert one.call("DELETE", f"/tokens/{narrow['token_id']}", headers=bearer(operator)).json["revoked"]
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(PATIENCE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401
    poll.join(PATIENCE_S)
    assert (polled[0].status, polled[0].json["code"]) == (401, "unauthenticated")
    until(lambda: (two.status() or {}).get("waiting") == 0)
    with pytest.raises(InvalidStatus) as refused, connect(three.websocket_url, ssl=three.tls, additional_headers=shop):
        pass
    assert refused.value.response.status_code == 401


def the_audit_trail_is_complete(node: LocalNode, operator_id: str) -> None:
    """Each entry point, and who it was; refused calls are not in it. Any node has all of it."""
    until(lambda: node.call("GET", "/audit", headers=node.credentials).status == 200)
    records = node.call("GET", "/audit?limit=1000", headers=node.credentials).json["records"]
    first, *others = records
    assert (first["operation"], first["by"], first["via"]) == ("tokens.create", "anyone", "http")
    by_operator = [one for one in others if one["by"] == f"token {operator_id} (operator)"]
    assert by_operator == others
    assert [one["operation"] for one in others].count("tokens.revoke") == 1
    assert {one["address"] for one in records} == {"127.0.0.1"}
    assert [one["index"] for one in records] == sorted(one["index"] for one in records)
    assert not [one for one in records if one["operation"] == "queue.purge"]


def commands_need_no_token(node: LocalNode, operator: str) -> None:
    """A command with the settings of the node proves that it has the cluster's secret."""
    command = ["token", "--url", node.url, "ls"]
    run = manage(*command, environment={"DSS_CLUSTER_SECRET": node.environment["DSS_CLUSTER_SECRET"]})
    assert run.returncode == 0
    assert "operator" in run.stdout
    assert operator not in run.stdout
    run = manage(*command, environment={"DSS_CLUSTER_SECRET": "another"})
    assert run.returncode == 1
    assert "the token is not valid" in run.stderr


def no_secret_is_kept(cluster: LocalCluster, secrets: list[str]) -> None:
    files = [path for path in cluster.directory.rglob("*") if path.is_file()]
    assert any(path.name == "raft.sqlite3" for path in files)
    for path in files:
        data = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in data], path
