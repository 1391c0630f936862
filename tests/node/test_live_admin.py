"""The admin lists, searches, sorts, filters and acts on rows that are not in a database."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.db.models import Q
from django.test import Client, override_settings
from django.urls import path

from dss_admin.live_admin import LiveAdmin, LiveQuerySet, LiveValuesFilter, duration_text
from dss_api.errors import Refused
from dss_raft.django_app.models import MemberRow

pytestmark = pytest.mark.django_db

PAGE = "/admin/dss_raft/memberrow/"
_MEMBERS = [("node-1", "leader", True, 9), ("node-2", "follower", False, None), ("node-10", "learner", True, 4)]


class MemberPage(LiveAdmin):
    list_display = ("id", "role", "up", "match_index")
    search_fields = ("id", "role")
    list_filter = ("up", ("role", LiveValuesFilter))
    ordering = ("id",)
    actions = ("poke",)
    poked: list[str]
    refusal: Refused | None = None

    def rows(self) -> list[MemberRow]:
        if self.refusal:
            raise self.refusal
        return [MemberRow(id=name, role=role, up=up, match_index=match) for name, role, up, match in _MEMBERS]

    @admin.action(description="Poke", permissions=["operate"])
    def poke(self, request: Any, queryset: Any) -> None:
        self.poked = [row.id for row in queryset]


@pytest.fixture
def page() -> Any:
    site = admin.AdminSite()
    site.register(MemberRow, MemberPage)
    urls = ModuleType("live_urls")
    urls.urlpatterns = [path("admin/", site.urls)]  # type: ignore[attr-defined]
    with override_settings(ROOT_URLCONF=urls):
        yield site.get_model_admin(MemberRow)


@pytest.fixture
def boss(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("boss", password="x"))
    return client


def ids(response: Any) -> list[str]:
    assert response.status_code == 200
    return [row.id for row in response.context["cl"].result_list]


def test_the_list_never_asks_the_database_for_rows(page: Any, boss: Client, django_assert_num_queries: Any) -> None:
    assert "dss_raft_memberrow" not in connection.introspection.table_names()
    assert ids(boss.get(PAGE)) == ["node-1", "node-10", "node-2"]


def test_sorting(page: Any, boss: Client) -> None:
    assert ids(boss.get(PAGE, {"o": "-1"})) == ["node-2", "node-10", "node-1"]
    assert ids(boss.get(PAGE, {"o": "4"})) == ["node-2", "node-10", "node-1"], "rows without a value come first"


def test_searching(page: Any, boss: Client) -> None:
    assert ids(boss.get(PAGE, {"q": "LEAD"})) == ["node-1"]
    assert ids(boss.get(PAGE, {"q": "node follow"})) == ["node-2"]
    assert ids(boss.get(PAGE, {"q": "nobody"})) == []


def test_filtering(page: Any, boss: Client) -> None:
    assert ids(boss.get(PAGE, {"up__exact": "1"})) == ["node-1", "node-10"]
    response = boss.get(PAGE, {"role": "learner"})
    assert ids(response) == ["node-10"]
    assert b"?role=follower" in response.content


def test_pages(page: Any, boss: Client) -> None:
    page.list_per_page = 2
    assert ids(boss.get(PAGE, {"p": "2"})) == ["node-2"]


def test_the_page_of_one_row(page: Any, boss: Client) -> None:
    response = boss.get(f"{PAGE}node-10/change/")
    assert response.status_code == 200
    assert b"learner" in response.content
    assert b'name="_save"' not in response.content
    assert boss.get(f"{PAGE}gone/change/").status_code == 302
    assert boss.get(f"{PAGE}add/").status_code == 403
    assert boss.post(f"{PAGE}node-10/delete/", {"post": "yes"}).status_code == 403


def test_an_action_gets_the_chosen_rows(page: Any, boss: Client) -> None:
    response = boss.post(PAGE, {"action": "poke", "_selected_action": ["node-1", "node-2"]})
    assert response.status_code == 302
    assert page.poked == ["node-1", "node-2"]


def test_reading_and_acting_are_two_permissions(page: Any, client: Client) -> None:
    user = User.objects.create_user("reader", password="x", is_staff=True)
    client.force_login(user)
    assert client.get(PAGE).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_memberrow"))
    response = client.get(PAGE)
    assert ids(response) == ["node-1", "node-10", "node-2"]
    assert b"Poke" not in response.content
    user.user_permissions.add(Permission.objects.get(codename="change_memberrow"))
    assert b"Poke" in client.get(PAGE).content


def test_a_node_that_is_not_running_says_so(page: Any, boss: Client) -> None:
    page.refusal = Refused("stopping", "this node is not running")
    response = boss.get(PAGE)
    assert ids(response) == []
    assert b"no live state to show: this node is not running" in response.content


def test_conditions() -> None:
    rows = LiveQuerySet(MemberRow, MemberPage.rows(MemberPage(MemberRow, admin.AdminSite())))

    def found(*conditions: Q, **lookups: Any) -> set[str]:
        return {row.id for row in rows.filter(*conditions, **lookups)}

    assert found(Q(role="leader") | Q(up=False)) == {"node-1", "node-2"}
    assert found(~Q(role="leader"), up=True) == {"node-10"}
    assert found(pk__in=["node-2", "x"]) == {"node-2"}
    assert found(match_index__gte="5") == {"node-1"}
    assert found(match_index__isnull=True) == {"node-2"}
    assert found() == {"node-1", "node-2", "node-10"}
    assert {row.id for row in rows.exclude(role="leader")} == {"node-2", "node-10"}
    with pytest.raises(NotImplementedError, match="regex"):
        found(id__regex=".*")
    with pytest.raises(MemberRow.DoesNotExist):
        rows.get(pk="x")


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1000, "1 s"),
        (12_349, "12.3 s"),
        (59_999, "59.9 s"),
        (60_000, "1 min 0 s"),
        (3_599_999, "59 min 59 s"),
        (7_800_000, "2 h 10 min"),
        (86_399_999, "23 h 59 min"),
        (273_600_000, "3 d 4 h"),
    ],
)
def test_durations_as_text(ms: int, text: str) -> None:
    assert duration_text(ms) == text
