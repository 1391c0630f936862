"""The calls of the API: the name on WebSocket, and the method and path over HTTP."""

from __future__ import annotations

#: operation: (method, path). GET and DELETE take their fields from the query string, or from the path.
OPERATIONS: dict[str, tuple[str, str]] = {
    "health": ("GET", "/health"),
    "ready": ("GET", "/ready"),
    "raft.status": ("GET", "/raft/status"),
    "raft.leader": ("GET", "/raft/leader"),
    "raft.start_election": ("POST", "/raft/start_election"),
    "raft.transfer": ("POST", "/raft/transfer"),
    "raft.log": ("GET", "/raft/log/{index}"),
    "raft.skip": ("POST", "/raft/skip"),
    "raft.save_snapshot": ("POST", "/raft/snapshot"),
    "raft.read_snapshot": ("GET", "/raft/snapshot/{id}"),
    "raft.add_member": ("POST", "/raft/members"),
    "raft.remove_member": ("DELETE", "/raft/members/{id}"),
    "raft.limits": ("GET", "/raft/limits"),
    "raft.set_limits": ("PUT", "/raft/limits"),
    "tokens.list": ("GET", "/tokens"),
    "tokens.create": ("POST", "/tokens"),
    "tokens.rotate": ("POST", "/tokens/rotate"),
    "tokens.revoke": ("DELETE", "/tokens/{id}"),
    "users.list": ("GET", "/users"),
    "users.create": ("POST", "/users"),
    "users.change": ("POST", "/users/change"),
    "users.sign_out": ("POST", "/users/sign_out"),
    "users.delete": ("DELETE", "/users/{name}"),
    "audit.list": ("GET", "/audit"),
    "requests.open": ("POST", "/request/session"),
    "requests.close": ("DELETE", "/request/session"),
    "locks.acquire": ("POST", "/lock/acquire"),
    "locks.release": ("POST", "/lock/release"),
    "locks.renew": ("POST", "/lock/renew"),
    "locks.check": ("POST", "/lock/check"),
    "locks.status": ("GET", "/lock/status"),
    "locks.graph": ("GET", "/lock/graph"),
    "locks.force_release": ("POST", "/lock/force_release"),
    "locks.audit": ("GET", "/lock/audit"),
    "locks.session_start": ("POST", "/session"),
    "locks.session_renew": ("POST", "/session/renew"),
    "locks.session_close": ("POST", "/session/close"),
    "queue.publish": ("POST", "/queue/publish"),
    "queue.consume": ("POST", "/queue/consume"),
    "queue.ack": ("POST", "/queue/ack"),
    "queue.nack": ("POST", "/queue/nack"),
    "queue.extend": ("POST", "/queue/extend"),
    "queue.stats": ("GET", "/queue/stats"),
    "queue.peek": ("GET", "/queue/peek"),
    "queue.topic": ("PUT", "/queue/topic"),
    "queue.topic_delete": ("DELETE", "/queue/topic"),
    "queue.group": ("PUT", "/queue/group"),
    "queue.group_delete": ("DELETE", "/queue/group"),
    "queue.settings": ("PUT", "/queue/settings"),
    "queue.redrive": ("POST", "/queue/redrive"),
    "queue.purge": ("POST", "/queue/purge"),
    "cache.put": ("POST", "/cache/put"),
    "cache.get": ("POST", "/cache/get"),
    "cache.get_query": ("GET", "/cache/get"),
    "cache.delete": ("POST", "/cache/delete"),
    "cache.add": ("POST", "/cache/add"),
    "cache.incr": ("POST", "/cache/incr"),
    "cache.touch": ("POST", "/cache/touch"),
    "cache.mget": ("POST", "/cache/mget"),
    "cache.mput": ("POST", "/cache/mput"),
    "cache.mdelete": ("POST", "/cache/mdelete"),
    "cache.clear": ("POST", "/cache/clear"),
    "cache.evict": ("POST", "/cache/evict"),
    "cache.lines": ("GET", "/cache/lines"),
    "cache.trace": ("GET", "/cache/trace"),
    "cache.stats": ("GET", "/cache/stats"),
}

#: These POST calls change nothing.
READ_BY_POST = frozenset({"cache.get", "cache.mget", "locks.check"})

#: They take no `request_id`: what a node does for itself, `cache.clear`, which is a series of commands, and what has a password in it.
NOT_NUMBERED = frozenset(
    {
        "raft.start_election",
        "raft.transfer",
        "raft.skip",
        "raft.save_snapshot",
        "raft.add_member",
        "raft.remove_member",
        "cache.clear",
        "cache.evict",
        "requests.open",
        "requests.close",
        "users.create",
        "users.change",
    }
)


def is_read(operation: str) -> bool:
    return operation in READ_BY_POST or OPERATIONS[operation][0] == "GET"
