"""Every page and action, for anonymous, viewer, operator, admin, on a closed node.

The pages come from the URL configuration, the rows and actions from the registry of the admin, and the calls from the registry of
operations. A new one fails here until it is in a table, which says independently of the code who may use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib import admin
from django.test import Client, RequestFactory, override_settings
from django.urls import URLPattern, URLResolver, get_resolver

from dss_admin.live_admin import LiveAdmin
from dss_api import guard as guards
from dss_api.operation import Operation
from dss_api.rights import ANY_TOKEN, OF_GROUP
from dss_api.routes import split_path
from dss_console.browsable_api import views_of
from dss_console.pages import page_patterns
from dss_dev.access_world import REACHED, FakeBook, make_guard, stubbed
from dss_dev.user_world import UserNode
from dss_project import urls as project_urls
from dss_raft.django_app.models import ClusterUser

pytestmark = pytest.mark.django_db

ANONYMOUS, VIEWER, OPERATOR, ADMIN = WHO = ("anonymous", "viewer", "operator", "admin")
#: no user may, not even an admin
NEVER = "never"

#: the rows of the admin -> from whom on they are shown, and from whom on their actions are offered
ROWS = {
    "dss_raft.memberrow": (VIEWER, ADMIN),
    "dss_raft.statusrow": (VIEWER, NEVER),
    "dss_raft.tokenrow": (ADMIN, ADMIN),
    "dss_raft.userrow": (ADMIN, ADMIN),
    "dss_raft.auditrow": (VIEWER, VIEWER),
    "dss_locks.lockrow": (VIEWER, OPERATOR),
    "dss_locks.waiterrow": (VIEWER, NEVER),
    "dss_locks.delayrow": (VIEWER, NEVER),
    "dss_locks.forcedrow": (VIEWER, NEVER),
    "dss_queue.backlogrow": (VIEWER, OPERATOR),
    "dss_queue.inflightrow": (VIEWER, OPERATOR),
    "dss_queue.deadletterrow": (VIEWER, OPERATOR),
    "dss_cache.linerow": (VIEWER, NEVER),
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
ROW_PAGES = {"", "add/", "<path:object_id>/history/", "<path:object_id>/delete/", "<path:object_id>/change/", "<path:object_id>/"}
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


@pytest.mark.parametrize("who", WHO)
def test_actions(clients: dict[str, Client], who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The action is sent as its form would, whether or not the form shows it, and must not reach its operation."""
    reached: list[tuple[str, bool]] = []
    access = OF_GROUP.get(who)

    def do_each(page: Any, request: Any, rows: Any, operation: Operation, request_of: Any, needs: Any = None) -> list[Any]:
        assert access is not None
        reached.append((operation.name, (needs or operation.needs).is_possible(access)))
        return []

    monkeypatch.setattr(LiveAdmin, "do_each", do_each)
    wrong = []
    for model, page in admin.site._registry.items():
        row = model(pk="0")
        monkeypatch.setattr(type(page), "rows", lambda page, row=row: [row])
        label = model._meta.label_lower
        for action in page.actions or ():
            reached.clear()
            form = {"action": action, "_selected_action": ["0"], "reason": "a test"}
            answer = clients[who].post(f"/admin/{label.replace('.', '/')}/", form)
            is_reached = bool(reached) or answer.headers.get("Content-Type") == "application/x-ndjson"
            if is_reached != may(who, ROWS[label][1]) or not all(is_allowed for _, is_allowed in reached):
                wrong.append((label, action, answer.status_code, list(reached)))
    assert wrong == []


def test_only_admins_see_messages_and_cached_values(node: UserNode) -> None:
    for label, field in (("inflightrow", "value"), ("deadletterrow", "value"), ("linerow", "value")):
        (page,) = (page for model, page in admin.site._registry.items() if model._meta.model_name == label)
        for who in (VIEWER, OPERATOR, ADMIN):
            request = RequestFactory().get("/")
            request.user = ClusterUser.of(node.users.users[who])
            shown = [page.get_list_display(request), page.get_fields(request), page.get_search_fields(request)]
            assert [field in fields for fields in shown] == [who == ADMIN] * 3, (label, who)


@pytest.mark.parametrize("label", ["dss_queue/inflightrow", "dss_queue/deadletterrow", "dss_cache/linerow"])
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
