"""Every page and action, for anonymous, viewer, operator, admin, on a closed node.

The pages come from the URL configuration, the rows and actions from the registry of the admin, and the calls from the registry of
operations. A new one fails here until it is in a table, which says independently of the code who may use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.messages import get_messages
from django.test import Client, RequestFactory, override_settings
from django.urls import URLPattern, URLResolver, get_resolver

from dss_admin.live_admin import LiveAdmin, Outcome
from dss_api import guard as guards
from dss_api.operation import Operation
from dss_api.rights import ANY_TOKEN, OF_GROUP
from dss_api.routes import split_path
from dss_console.browsable_api import views_of
from dss_console.pages import page_patterns
from dss_dev.access_world import REACHED, FakeBook, make_guard, stubbed
from dss_dev.user_world import UserNode
from dss_project import urls as project_urls
from dss_queue.core.commands import TopicSettings
from dss_queue.core.records import Message
from dss_queue.django_app.rows import TakenMessage
from dss_raft.django_app.models import ClusterUser

pytestmark = pytest.mark.django_db

ANONYMOUS, VIEWER, OPERATOR, ADMIN = WHO = ("anonymous", "viewer", "operator", "admin")
#: no user may, not even an admin
NEVER = "never"

#: the rows of the admin -> from whom on they are shown, and from whom on their actions are offered
ROWS = {
    "dss_raft.memberrow": (VIEWER, ADMIN),
    "dss_raft.statusrow": (VIEWER, NEVER),
    "dss_raft.entryrow": (ADMIN, NEVER),
    "dss_raft.snapshotrow": (VIEWER, NEVER),
    "dss_raft.tokenrow": (ADMIN, ADMIN),
    "dss_raft.userrow": (ADMIN, ADMIN),
    "dss_raft.auditrow": (VIEWER, VIEWER),
    "dss_locks.lockrow": (VIEWER, OPERATOR),
    "dss_locks.waiterrow": (VIEWER, OPERATOR),
    "dss_locks.sessionrow": (VIEWER, OPERATOR),
    "dss_locks.delayrow": (VIEWER, NEVER),
    "dss_locks.deadlockrow": (VIEWER, NEVER),
    "dss_locks.forcedrow": (VIEWER, NEVER),
    "dss_queue.topicrow": (VIEWER, OPERATOR),
    "dss_queue.backlogrow": (VIEWER, OPERATOR),
    "dss_queue.consumerrow": (VIEWER, NEVER),
    "dss_queue.messagerow": (VIEWER, OPERATOR),
    "dss_queue.deadletterrow": (VIEWER, OPERATOR),
    "dss_cache.keyrow": (VIEWER, OPERATOR),
    "dss_cache.linerow": (VIEWER, NEVER),
}
#: the actions, written down so that one that is lost is noticed; those of the list as a whole begin with "do/"
ACTIONS = {
    "dss_raft.memberrow": {"make_leader", "remove", "replace", "do/add", "do/start_election"},
    "dss_raft.tokenrow": {"revoke"},
    "dss_raft.userrow": {"sign_out", "disable", "enable", "delete"},
    "dss_raft.auditrow": {"export"},
    "dss_locks.lockrow": {"force_release"},
    "dss_locks.waiterrow": {"cancel_wait"},
    "dss_locks.sessionrow": {"close"},
    "dss_queue.topicrow": {"change_settings", "purge", "delete_dead", "delete_topics", "do/create"},
    "dss_queue.backlogrow": {"redrive_all", "delete_dead", "delete_groups"},
    "dss_queue.messagerow": {"give_back", "dead_letter"},
    "dss_queue.deadletterrow": {"redrive", "delete_dead"},
    "dss_cache.keyrow": {"evict", "invalidate"},
}
#: a row that the actions of its list can be used on, beyond its primary key
ACTED_ON = {
    "dss_raft.memberrow": {"role": "follower", "url": "http://node-9:1"},
    "dss_locks.waiterrow": {"client": "a", "place": 1},
    "dss_locks.lockrow": {"key": "a", "client": "a", "waiting": 0},
    "dss_locks.sessionrow": {"key_count": 0},
    "dss_queue.topicrow": {"topic": "a", "messages": 1, "dead": 1, "groups": 1, "consumers": 1},
    "dss_queue.backlogrow": {"topic": "a", "group": "g", "dead": 1, "ready": 0, "delayed": 0, "in_flight": 0},
    "dss_queue.messagerow": {"topic": "a", "group": "g", "state": "in flight"},
}
#: what the forms of actions ask for
GIVEN = {
    "reason": "a test",
    "url": "http://node-9:1",
    "id": "node-9",
    "nodes": "node-9",
    "topic": "b",
    "dead_letter_topic": "",
    "engine": "raft",
    "acks": "primary",
    **dict.fromkeys(("max_attempts", "backoff_ms", "retention_ms", "dedup_window_ms", "keep_ms", "max_bytes"), "1"),
}
#: rows that are made and changed in a form
EDITED = {"dss_raft.userrow"}

#: the pattern of a page -> an address, and from whom on it is shown
PAGES = {
    "": ("/", VIEWER),
    "ui/locks": ("/ui/locks", VIEWER),
    "ui/queues": ("/ui/queues", VIEWER),
    "ui/cache": ("/ui/cache", VIEWER),
    "ui/lock": ("/ui/lock?name=a", VIEWER),
    "ui/topic": ("/ui/topic?name=a", VIEWER),
    "ui/key": ("/ui/key?name=a", VIEWER),
    "ui/ticket": ("/ui/ticket", VIEWER),
    "favicon.ico": ("/favicon.ico", ANONYMOUS),
    "api/schema": ("/api/schema", VIEWER),
    "api/docs": ("/api/docs", VIEWER),
    "api/": ("/api/", VIEWER),
    "api/call/<str:name>": ("/api/call/locks.acquire", VIEWER),
    "admin/": ("/admin/", VIEWER),
    "admin/login/": ("/admin/login/", ANONYMOUS),
    "admin/password_change/": ("/admin/password_change/", VIEWER),
    "admin/password_change/done/": ("/admin/password_change/done/", VIEWER),
    "admin/jsi18n/": ("/admin/jsi18n/", VIEWER),
    # They find no object, which only those who are logged in are told.
    "admin/r/<path:content_type_id>/<path:object_id>/": ("/admin/r/0/0/", VIEWER),
    "admin/autocomplete/": ("/admin/autocomplete/", NEVER),
    "admin/(?P<url>.*)$": ("/admin/nothing/", NEVER),
    "admin/^(?P<app_label>dss_raft|dss_locks|dss_queue|dss_cache)/$": ("/admin/dss_raft/", VIEWER),
    # Ends the session of the user who sends it.
    "admin/logout/": ("/admin/logout/", NEVER),
}
#: not in `PAGES`, because the tests of rows cover them
ROW_PAGES = {
    "do/<str:name>/",
    "",
    "add/",
    "<path:object_id>/history/",
    "<path:object_id>/delete/",
    "<path:object_id>/change/",
    "<path:object_id>/",
}
#: a status that shows the page, or its absence
SHOWN = (200, 204, 404)

SCOPES = {ANONYMOUS: set(), VIEWER: {"read"}, OPERATOR: {"read", "operate"}}


def may(who: str, first: str) -> bool:
    return first != NEVER and WHO.index(who) >= WHO.index(first)


@pytest.fixture(scope="module")
def node() -> Iterator[UserNode]:
    made = UserNode()
    for group in (VIEWER, OPERATOR, ADMIN):
        made.add(group, group, hasher=lambda password: "unusable")  # type: ignore[arg-type]
    yield made
    made.close()


@pytest.fixture
def clients(node: UserNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Client]]:
    monkeypatch.setattr("dss_api.running.node", lambda: node)
    monkeypatch.setattr("dss_api.running.loop", lambda: node.loop)
    monkeypatch.setattr(guards, "_shared", make_guard(FakeBook()))
    monkeypatch.setattr(LiveAdmin, "rows", lambda page: [])
    monkeypatch.setattr("dss_cache.django_app.admin.member_ids", lambda: ["node-9"])
    monkeypatch.setattr("dss_cache.django_app.admin.lines_on_all_nodes", lambda keys: {key: {} for key in keys})
    urls = ModuleType("matrix_urls")
    urls.urlpatterns = [*page_patterns, *views_of(stubbed())]  # type: ignore[attr-defined]
    with override_settings(ROOT_URLCONF=urls):
        found = {who: Client(headers={"Host": "localhost"}, raise_request_exception=False) for who in WHO}
        for who in WHO[1:]:
            found[who].force_login(ClusterUser.of(node.users.users[who]))
        yield found


def test_the_tables_are_complete() -> None:
    assert set(ROWS) == {model._meta.label_lower for model in admin.site._registry}
    at_calls = {operation.path.lstrip("/").replace("{", "<str:").replace("}", ">") for operation in stubbed()}
    rows = {f"admin/{label.replace('.', '/')}/{page}" for label in ROWS for page in ROW_PAGES}
    patterns = set(_patterns(get_resolver(project_urls.__name__)))
    assert patterns - at_calls - rows == set(PAGES)


def _patterns(resolver: URLResolver, prefix: str = "") -> Iterator[str]:
    for one in resolver.url_patterns:
        pattern = prefix + str(one.pattern)
        if isinstance(one, URLPattern):
            yield pattern
        else:
            yield from _patterns(one, pattern)


@pytest.mark.parametrize("who", WHO)
def test_pages(clients: dict[str, Client], who: str) -> None:
    wrong = []
    for address, first in PAGES.values():
        if first == NEVER:
            continue
        answer = clients[who].get(address)
        # The login page sends a user who is logged in to the index.
        is_shown = answer.status_code in SHOWN or answer.headers.get("Location") == "/admin/"
        if is_shown != may(who, first):
            wrong.append((address, answer.status_code))
    assert wrong == []


def test_a_token_gets_no_ticket(clients: dict[str, Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bearer can send it with the WebSocket, where its quotas count, and where it ends."""
    book = FakeBook()
    monkeypatch.setattr(guards, "_shared", make_guard(book))
    header = {"Authorization": book.add("read").header}
    assert clients[ANONYMOUS].get("/ui/locks", headers=header).status_code in SHOWN
    for who in WHO:
        answer = clients[who].get("/ui/ticket", headers=header)
        assert (answer.status_code, "Authorization" in answer.json()["detail"]) == (403, True)


@pytest.mark.parametrize("who", WHO)
def test_rows(clients: dict[str, Client], who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = []
    for model, page in admin.site._registry.items():
        label = model._meta.label_lower
        monkeypatch.setattr(type(page), "rows", lambda page: [])
        first, first_to_act = ROWS[label]
        path = f"/admin/{label.replace('.', '/')}/"
        edited_from = first_to_act if label in EDITED else NEVER
        for below, needed in (("", first), ("add/", edited_from), ("x/delete/", NEVER)):
            status = clients[who].get(path + below).status_code
            # A row that is not there redirects to the index, so only the refusal can be told from it.
            if (status == 200) != may(who, needed):
                wrong.append((path + below, status))
    assert wrong == []


def test_every_action_is_known() -> None:
    found = {
        model._meta.label_lower: {*(page.actions or ()), *(f"do/{name}" for name in page.list_actions)}
        for model, page in admin.site._registry.items()
    }
    assert {label: actions for label, actions in found.items() if actions} == ACTIONS


@pytest.mark.parametrize("who", WHO)
def test_actions(clients: dict[str, Client], who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The action is sent as its form would, whether or not the form shows it, and must not reach its operation."""
    reached: list[tuple[str, bool]] = []
    access = OF_GROUP.get(who)

    def do_each(
        page: Any, request: Any, rows: Any, operation: Operation, request_of: Any, reason: str, needs: Any = None
    ) -> Outcome:
        assert access is not None
        assert reason == "a test"
        reached.append((operation.name, (needs or operation.needs).is_possible(access)))
        return Outcome([])

    monkeypatch.setattr(LiveAdmin, "do_each", do_each)
    monkeypatch.setattr("dss_queue.django_app.admin.rows_from_loop", lambda take: FakeTopic())
    monkeypatch.setattr("dss_queue.django_app.admin._broker", lambda: SimpleNamespace(topics={}))
    wrong = []
    for model, page in admin.site._registry.items():
        label = model._meta.label_lower
        row = model(**{"pk": "0", **ACTED_ON.get(label, {})})
        other = model(pk="9", role="follower") if label == "dss_raft.memberrow" else None
        monkeypatch.setattr(type(page), "rows", lambda page, row=row, other=other: [row, other] if other else [row])
        for action in sorted(ACTIONS.get(label, ())):
            reached.clear()
            path = f"/admin/{label.replace('.', '/')}/"
            if action.startswith("do/"):
                path, form = f"{path}{action}/", {}
            else:
                form = {"action": action, "_selected_action": [row.pk]}
            asked = clients[who].post(path, form)
            assert not reached, f"{label} {action} acts without asking"
            is_asked = asked.status_code == 200 and b'name="confirmed"' in asked.content
            answer = clients[who].post(path, {**form, **GIVEN, "node": settings.NODE.node_id, "confirmed": "1"})
            is_export = answer.headers.get("Content-Type") == "application/x-ndjson"
            is_reached = bool(reached) or is_export
            expected = may(who, ROWS[label][1])
            if is_reached != expected or (is_asked or is_export) != expected or not all(is_allowed for _, is_allowed in reached):
                wrong.append((label, action, asked.status_code, answer.status_code, list(reached)))
    assert wrong == []


class FakeTopic:
    """A topic with the settings of a new one."""

    queue = None
    messages = SimpleNamespace(settings=TopicSettings())


def test_only_admins_see_messages_and_cached_values(node: UserNode) -> None:
    fields = [(label, "value") for label in ("messagerow", "deadletterrow", "keyrow", "linerow")]
    for label, field in (*fields, ("messagerow", "headers"), ("deadletterrow", "headers")):
        (page,) = (page for model, page in admin.site._registry.items() if model._meta.model_name == label)
        for who in (VIEWER, OPERATOR, ADMIN):
            request = RequestFactory().get("/")
            request.user = ClusterUser.of(node.users.users[who])
            request._members = []  # type: ignore[attr-defined]
            shown = [page.get_list_display(request), page.get_fields(request), page.get_search_fields(request)]
            where = [field in names for names in shown]
            assert any(where) == (who == ADMIN), (label, who)
            assert who == ADMIN or not any(where), (label, who)


@pytest.mark.parametrize("label", ["dss_queue/messagerow", "dss_queue/deadletterrow", "dss_cache/keyrow", "dss_cache/linerow"])
def test_nobody_else_can_guess_them_by_lookups(clients: dict[str, Client], label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (page,) = (page for model, page in admin.site._registry.items() if model._meta.label_lower == label.replace("/", "."))
    monkeypatch.setattr(type(page), "rows", lambda page: [page.model(pk="0", value="a secret")])
    lookups = ("value", "value__startswith", "value__contains", "value__in", "value__gt", "value__isnull")
    for who in (VIEWER, OPERATOR, ADMIN):
        statuses = {clients[who].get(f"/admin/{label}/", {lookup: "a"}).status_code for lookup in lookups}
        assert statuses == {200 if who == ADMIN else 400}, who
        request = RequestFactory().get("/")
        request.user = clients[who].get("/admin/").wsgi_request.user
        (row,) = page.get_queryset(request)
        assert row.value == ("a secret" if who == ADMIN else ""), "no other way to read the row shows it"


@pytest.mark.parametrize("lookup", ["message__contains", "message.value__contains", "message.value__startswith", "serial"])
def test_lookups_reach_only_the_fields_of_the_model(
    clients: dict[str, Client], lookup: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = Message(1, "", -1, b'"a secret"', b"", 0, 0)
    row = TakenMessage("orders", "billing", message, "ready", 0, "", None, 0, 0)
    monkeypatch.setattr("dss_queue.django_app.admin.MessageRowAdmin.rows", lambda page: [row])
    for who in (VIEWER, OPERATOR, ADMIN):
        answer = clients[who].get("/admin/dss_queue/messagerow/", {lookup: "secret"})
        assert answer.status_code == 302, who
        assert answer.headers["Location"].endswith("?e=1"), "as for every lookup that the list does not know"


def test_an_election_names_the_node_on_which_it_starts(clients: dict[str, Client]) -> None:
    asked = clients[ADMIN].get("/admin/dss_raft/memberrow/do/start_election/").content.decode()
    assert f"on this node, {settings.NODE.node_id}:" in asked
    assert f'<input type="hidden" name="node" value="{settings.NODE.node_id}"' in asked


@pytest.mark.parametrize("named", ["node-77", ""])
def test_an_election_is_not_started_on_another_node(
    clients: dict[str, Client], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[Any] = []
    monkeypatch.setattr(LiveAdmin, "do_each", lambda *args: reached.append(args) or Outcome([]))
    form = {"confirmed": "1", "reason": "a test", "node": named}
    answer = clients[ADMIN].post("/admin/dss_raft/memberrow/do/start_election/", form)
    assert answer.status_code == 302
    assert not reached
    (message,) = get_messages(answer.wsgi_request)
    assert f"but {settings.NODE.node_id} got the request" in str(message)


def test_the_form_of_a_call_that_is_nested_too_deeply_is_refused(clients: dict[str, Client]) -> None:
    answer = clients[ADMIN].post("/api/call/queue.peek", {"_content": '{"topic":' + '{"a":' * 5000 + "1" + "}" * 5001})
    assert answer.status_code == 400
    assert b"nested too deeply" in answer.content


@pytest.mark.parametrize("who", WHO)
def test_calls_of_the_browsable_api(clients: dict[str, Client], who: str) -> None:
    wrong = []
    for operation in stubbed():
        method, path, body = _request(operation)
        answer = clients[who].generic(method, path, body, content_type="application/json" if body else "")
        code = answer.json()["code"]
        if operation.needs.is_open:
            expected = REACHED
        elif who == ANONYMOUS:
            expected = "unauthenticated"
        elif who == ADMIN or operation.needs is ANY_TOKEN or operation.needs.plain_scopes() & SCOPES[who]:
            expected = REACHED
        else:
            expected = "forbidden"
        if code != expected:
            wrong.append((operation.name, code))
    assert wrong == []


def _request(operation: Operation) -> tuple[str, str, bytes]:
    example = dict(operation.example)
    prefix, parameter = split_path(operation.path)
    path = prefix + str(example.pop(parameter)) if parameter else prefix
    if operation.method in ("GET", "DELETE"):
        return operation.method, f"{path}?{urlencode(example)}" if example else path, b""
    return operation.method, path, json.dumps(example).encode()
