"""What logged-in users may do on the pages of a closed node, and the admin's pages about access."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client, override_settings

from dss_api import guard as guards
from dss_api.result import Result
from dss_api.token_text import new_id
from dss_console.browsable_api import views_of
from dss_console.pages import page_patterns
from dss_dev.access_world import KEY, REACHED, FakeBook, make_guard, stubbed
from dss_raft.audit_log import AuditLog
from dss_raft.replication.access_tokens import AccessTokens, CreateToken
from dss_raft.replication.audit import AuditTrail, RecordCall
from dss_raft.replication.machine import Origin

BROWSER = {"Accept": "text/html,application/xhtml+xml"}


class Node:
    """Has the machines of access, and applies what is submitted."""

    node_id = "node-1"
    unusable_reason = ""
    applied_index = 0

    def __init__(self) -> None:
        self.machines = {"tokens": AccessTokens(), "audit": AuditTrail()}
        self.services: dict[str, Any] = {}
        self.replica = SimpleNamespace(cluster_version=4)

    def machine(self, name: str) -> Any:
        return self.machines[name]

    def status(self) -> dict[str, Any]:
        state = {"code": 2, "name": "LEADER"}
        return {"node": "node-1", "term": 3, "state": state, "leader_id": "node-1", "commit_index": 9, "members": []}

    async def submit(self, command: Any, **options: Any) -> Any:
        self.applied_index += 1
        machine = self.machines["audit" if isinstance(command, RecordCall) else "tokens"]
        result = machine.apply(command, 1000 * self.applied_index, self.applied_index, Origin("n", 1, self.applied_index))
        return Result(result.body, result.code, self.applied_index)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    made = Node()
    AuditLog(made)  # type: ignore[arg-type]
    monkeypatch.setattr("dss_api.running.node", lambda: made)
    monkeypatch.setattr("dss_api.running.loop", lambda: loop)
    urls = ModuleType("access_urls")
    urls.urlpatterns = [*page_patterns, *views_of(stubbed())]  # type: ignore[attr-defined]
    with override_settings(ROOT_URLCONF=urls):
        yield made
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def book(node: Node, monkeypatch: pytest.MonkeyPatch) -> FakeBook:
    book = FakeBook()
    monkeypatch.setattr(guards, "_shared", make_guard(book))
    return book


def user(name: str, *permissions: str, is_superuser: bool = False, is_staff: bool = True) -> User:
    found = User.objects.create_user(name, password="x", is_staff=is_staff, is_superuser=is_superuser)
    found.user_permissions.add(*Permission.objects.filter(codename__in=permissions))
    return found


CALLS = {
    "read": ("GET", "/raft/status", None),
    "operate": ("POST", "/queue/purge", {"topic": "a"}),
    "cluster": ("POST", "/raft/start_election", {}),
    "cache": ("POST", "/cache/put", {"key": "a", "value": 1}),
    "tokens": ("GET", "/tokens", None),
}


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("permissions", "options", "allowed"),
    [
        ((), {"is_superuser": True}, set(CALLS)),
        ((), {}, set()),
        (("view_memberrow",), {}, {"read"}),
        (("change_lockrow",), {}, {"operate"}),
        (("view_lockrow", "change_memberrow"), {}, {"read", "cluster"}),
        (("view_memberrow", "change_memberrow"), {"is_staff": False}, set()),
    ],
)
def test_a_call_asks_for_the_permission_and_not_for_staff(
    book: FakeBook, permissions: tuple[str, ...], options: dict[str, bool], allowed: set[str]
) -> None:
    client = Client(headers={"Host": "localhost"})
    client.force_login(user("u", *permissions, **options))
    found = set()
    for name, (method, path, body) in CALLS.items():
        answer = client.generic(method, path, json.dumps(body) if body is not None else b"", content_type="application/json")
        code = answer.json()["code"]
        assert code in (REACHED, "forbidden", "unauthenticated")
        assert code != "unauthenticated" or options.get("is_staff") is False
        if code == REACHED:
            found.add(name)
            assert answer.json()["detail"] == "user u"
    assert found == allowed


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/", "/api/schema", "/api/docs"])
def test_pages_ask_for_a_reader(book: FakeBook, path: str) -> None:
    client = Client(headers={"Host": "localhost"})
    answer = client.get(path)
    assert (answer.status_code, answer["Location"]) == (302, f"/admin/login/?next={path}")
    assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get(path, headers={"Authorization": book.add("locks:").header}).status_code == 403
    client.force_login(user("nobody"))
    assert client.get(path).status_code == 403
    client.force_login(user("viewer", "view_memberrow"))
    assert client.get(path).status_code == 200


@pytest.mark.django_db
def test_the_admin_lists_and_revokes_tokens_and_shows_who_did_it(book: FakeBook, node: Node) -> None:
    tokens: AccessTokens = node.machine("tokens")
    kept, gone = new_id(), new_id()
    for number, token_id in enumerate((kept, gone)):
        tokens.apply(CreateToken(id=token_id, name=f"token-{number}", scopes=["read"], key=KEY.id), 1000, 1, Origin("n", 1, 1))
    client = Client(headers={"Host": "localhost"})
    client.force_login(user("boss", is_superuser=True))
    page = client.get("/admin/dss_raft/tokenrow/").content.decode()
    assert "token-0" in page
    assert "dss1_" not in page
    form = {"action": "revoke", "_selected_action": [gone], "confirmed": "1", "reason": "leaked"}
    assert "1 revoked." in client.post("/admin/dss_raft/tokenrow/", form, follow=True).content.decode()
    assert list(tokens.tokens) == [kept]
    (record,) = node.machine("audit").records
    assert (record.by, record.via, record.operation, record.address) == ("user boss", "admin", "tokens.revoke", "127.0.0.1")
    assert (json.loads(record.request), record.reason) == ({"id": gone}, "leaked")

    assert "tokens.revoke" in client.get("/admin/dss_raft/auditrow/", {"q": gone}).content.decode()
    form = {"action": "export", "_selected_action": [record.index]}
    exported = client.post("/admin/dss_raft/auditrow/", form)
    assert exported["Content-Type"] == "application/x-ndjson"
    (line,) = [json.loads(line) for line in exported.content.splitlines()]
    assert (line["by"], line["index"], line["request"]) == ("user boss", record.index, record.request)


@pytest.mark.django_db
def test_a_viewer_of_the_admin_cannot_revoke(book: FakeBook, node: Node) -> None:
    tokens: AccessTokens = node.machine("tokens")
    token_id = new_id()
    tokens.apply(CreateToken(id=token_id, name="a", scopes=["read"], key=KEY.id), 1000, 1, Origin("n", 1, 1))
    client = Client(headers={"Host": "localhost"})
    client.force_login(user("viewer", "view_tokenrow", "view_auditrow"))
    client.post(
        "/admin/dss_raft/tokenrow/",
        {"action": "revoke", "_selected_action": [token_id], "confirmed": "1", "reason": "x"},
        follow=True,
    )
    assert list(tokens.tokens) == [token_id]
    assert client.get("/admin/dss_raft/auditrow/").status_code == 200
