"""Users of the cluster on the pages: logging in, what ends sessions, the forms of the admin, and users of an older release."""

from __future__ import annotations

import asyncio
import json
import random
import re
import string
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User as LocalUser
from django.test import Client, override_settings

from dss_api import failures
from dss_api import guard as guards
from dss_api.errors import Refused
from dss_api.failures import LOGINS_PER_ADDRESS_MAX
from dss_dev.access_world import FakeBook, make_guard
from dss_dev.user_world import PASSWORD, UserNode
from dss_project import first_user
from dss_project.registry import operations
from dss_raft.audit_log import HIDDEN
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.django_app import backend, login, passwords
from dss_raft.django_app.passwords import Hashing
from dss_raft.log_view import show
from dss_raft.replication.batch import encode_batch, encode_command, encode_group
from dss_raft.replication.users import BeginUsers, ChangeUser, CreateUser, DeleteUser, NewUser, Users
from dss_raft.user_operations import ChangeUserRequest, CreateUserRequest

pytestmark = pytest.mark.django_db

NEW = "another long phrase"
ROW = "/admin/dss_raft/userrow/"


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[UserNode]:
    made = UserNode()
    monkeypatch.setattr("dss_api.running.node", lambda: made)
    monkeypatch.setattr("dss_api.running.loop", lambda: made.loop)
    monkeypatch.setattr(guards, "_shared", make_guard(FakeBook()))
    monkeypatch.setattr(failures, "_logins", failures.FailedLogins())
    monkeypatch.setattr(backend, "_rows", {})
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"]):
        made.add("boss", "admin")
        made.add("alice", "viewer")
        yield made
    made.close()


def browser(address: str = "127.0.0.1") -> Client:
    return Client(headers={"Host": "localhost"}, REMOTE_ADDR=address)


def log_in(client: Client, name: str = "alice", password: str = PASSWORD) -> Any:
    return client.post("/admin/login/?next=/", {"username": name, "password": password})


def logged_in(name: str = "alice", address: str = "127.0.0.1") -> Client:
    client = browser(address)
    assert log_in(client, name).status_code == 302
    return client


def is_logged_in(client: Client) -> bool:
    return client.get("/admin/").status_code == 200


# ----------------------------------------------------------------- sessions


def test_a_session_is_a_cookie_that_every_node_can_check(node: UserNode) -> None:
    client = logged_in()
    (cookie,) = (cookie for name, cookie in client.cookies.items() if name.startswith("dss_session_"))
    elsewhere = browser()
    elsewhere.cookies[cookie.key] = cookie.value
    assert is_logged_in(elsewhere)
    assert node.users.users["alice"].password_hash not in cookie.value
    elsewhere.cookies[cookie.key] = cookie.value[:-1] + ("A" if cookie.value[-1] != "A" else "B")
    assert not is_logged_in(elsewhere)


@pytest.mark.parametrize(
    "command",
    [
        ChangeUser(name="alice", sign_out=True),
        ChangeUser(name="alice", password_hash="md5$salt$1bc29b36f623ba82aaf6724fd3b16718"),
        ChangeUser(name="alice", active=False),
        ChangeUser(name="alice", group="admin"),
        DeleteUser(name="alice"),
    ],
)
def test_what_ends_all_sessions(node: UserNode, command: Any) -> None:
    client, other = logged_in(), logged_in("boss")
    assert is_logged_in(client)
    node.apply(command)
    assert not is_logged_in(client)
    assert is_logged_in(other)


def test_a_later_user_of_the_same_name_has_none_of_the_sessions(node: UserNode) -> None:
    client = logged_in()
    old = node.users.users["alice"].password_hash
    node.apply(DeleteUser(name="alice"))
    node.apply(CreateUser(name="alice", group="admin", password_hash=old))
    assert not is_logged_in(client)
    assert is_logged_in(logged_in())


def test_the_key_of_sessions_can_change(node: UserNode, settings: Any) -> None:
    client, away = logged_in(), logged_in()
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "a new secret of the cluster", [settings.SECRET_KEY]
    assert is_logged_in(client)
    settings.SECRET_KEY_FALLBACKS = []
    assert is_logged_in(client), "it was signed again"
    assert not is_logged_in(away)


def test_a_session_ends_12_hours_after_the_login_although_it_was_signed_again(
    node: UserNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, began_s = logged_in(), time.time()
    monkeypatch.setattr(time, "time", lambda: began_s + 11 * 3600)
    assert client.post(OWN_PAGE, OWN).status_code == 302
    assert is_logged_in(client)
    monkeypatch.setattr(time, "time", lambda: began_s + 13 * 3600)
    assert not is_logged_in(client)
    assert log_in(client, "alice", NEW).status_code == 302
    assert is_logged_in(client)


def test_long_messages_of_pages_do_not_sign_a_session_again(node: UserNode) -> None:
    client = logged_in("boss")
    (session,) = (name for name in client.cookies if name.startswith("dss_session_"))
    # Random, because messages are compressed.
    node.refusal = Refused("no_leader", "".join(random.choices(string.ascii_letters, k=3_000)))
    answer = client.post(ROW, {"action": "sign_out", "_selected_action": ["alice"], "confirmed": "1", "reason": "a test"})
    assert answer.status_code == 302
    assert session not in answer.cookies


def test_who_may_not_log_in(node: UserNode) -> None:
    node.apply(ChangeUser(name="alice", active=False))
    for name, password in (("alice", PASSWORD), ("boss", "wrong"), ("nobody", PASSWORD), ("boss", PASSWORD + "x" * 2000)):
        answer = log_in(browser(), name, password)
        assert answer.status_code == 200
        assert b"Please enter the correct username and password" in answer.content


def test_a_login_needs_no_leader_and_a_change_says_that_there_is_none(node: UserNode) -> None:
    node.refusal = Refused("no_leader", "no leader is known")
    client = logged_in("boss")
    answer = client.post(f"{ROW}alice/change/", {"group": "admin", "active": "on", "password": ""}, follow=True)
    assert "Not saved: no leader is known" in answer.content.decode()
    assert node.users.users["alice"].group == "viewer"
    form = {"old_password": PASSWORD, "new_password1": NEW, "new_password2": NEW}
    assert "No leader is known." in client.post("/admin/password_change/", form).content.decode()
    assert LogEntry.objects.count() == 0


def test_a_node_that_stops_says_so(node: UserNode, monkeypatch: pytest.MonkeyPatch) -> None:
    client = logged_in()

    def no_node() -> Any:
        raise Refused("stopping", "this node is not running")

    monkeypatch.setattr("dss_api.running.call_in_loop", lambda function: no_node())
    answer = log_in(browser())
    assert (answer.status_code, answer["Retry-After"]) == (503, "1")
    assert b"This node is not running." in answer.content
    assert client.get("/admin/").status_code == 302


# ------------------------------------------------------------ wrong passwords


def test_an_address_that_guesses_is_slowed_down_and_others_are_not(node: UserNode, caplog: pytest.LogCaptureFixture) -> None:
    guesser = browser("192.0.2.1")
    for number in range(LOGINS_PER_ADDRESS_MAX):
        assert log_in(guesser, "alice", f"guess {number}").status_code == 200
    answer = log_in(guesser)
    assert answer.status_code == 429
    assert int(answer["Retry-After"]) <= failures.LOGIN_OF_ADDRESS_EVERY_S + 1
    assert b"too many failed logins; try again in" in answer.content
    assert "/admin/login/" not in caplog.text, "a flood does not fill the log"
    assert not is_logged_in(guesser)
    assert is_logged_in(logged_in(address="192.0.2.2"))


def test_a_flood_is_refused_before_it_is_hashed(node: UserNode, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = Hashing(hashes_max=0)
    monkeypatch.setattr(backend, "hashing", lambda: hashing)
    answer = log_in(browser())
    assert answer.status_code == 503
    assert b"This node is checking other passwords" in answer.content
    for _ in range(2 * LOGINS_PER_ADDRESS_MAX):
        assert log_in(browser()).status_code == 503, "a login that was not checked is no failure"


def test_checking_has_the_lowest_priority_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(passwords.os, "setpriority", lambda which, who, niceness: asked.append((who, niceness)))
    hashing = Hashing()
    assert not hashing.is_right("a", "")
    assert not hashing.is_right("b", "")
    assert [niceness for _, niceness in asked] == [passwords.NICENESS]


# -------------------------------------------------------------- own password


def test_a_user_changes_the_own_password_and_stays_logged_in_here(node: UserNode) -> None:
    client, elsewhere = logged_in(), logged_in()
    form = {"old_password": PASSWORD, "new_password1": NEW, "new_password2": NEW}
    assert (
        b"Your old password was entered incorrectly"
        in client.post("/admin/password_change/", {**form, "old_password": "x"}).content
    )
    assert b"too short" in client.post("/admin/password_change/", {**form, "new_password1": "ab", "new_password2": "ab"}).content
    assert client.post("/admin/password_change/", form)["Location"] == "/admin/password_change/done/"
    assert is_logged_in(client)
    assert not is_logged_in(elsewhere)
    assert log_in(browser(), "alice", PASSWORD).status_code == 200
    assert log_in(browser(), "alice", NEW).status_code == 302
    (record,) = node.machine("audit").records
    assert (record.by, record.operation, json.loads(record.request)["password"]) == ("user alice", "users.change", HIDDEN)
    assert NEW not in record.request


OWN = {"old_password": PASSWORD, "new_password1": NEW, "new_password2": NEW}
OWN_PAGE = "/admin/password_change/"


def test_an_open_session_is_no_faster_way_to_guess_the_password(node: UserNode) -> None:
    client = logged_in(address="192.0.2.1")
    for number in range(LOGINS_PER_ADDRESS_MAX):
        answer = client.post(OWN_PAGE, {**OWN, "old_password": f"guess {number}"})
        assert (answer.status_code, b"entered incorrectly" in answer.content) == (200, True)
    answer = client.post(OWN_PAGE, OWN)
    assert answer.status_code == 429
    assert int(answer["Retry-After"]) <= failures.LOGIN_OF_ADDRESS_EVERY_S + 1
    assert b"too many failed logins; try again in" in answer.content
    assert log_in(browser("192.0.2.1")).status_code == 429, "both have one limit"
    assert logged_in(address="192.0.2.2").post(OWN_PAGE, OWN).status_code == 302


def test_changes_of_passwords_leave_room_for_logins(node: UserNode, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing, free = Hashing(), threading.Event()
    monkeypatch.setattr(backend, "hashing", lambda: hashing)
    monkeypatch.setattr(login, "hashing", lambda: hashing)
    client = logged_in()
    waiting = [hashing._run(lambda: free.wait(60)) for _ in range(passwords.HASHES_MAX - passwords.FOR_LOGINS)]
    answer = client.post(OWN_PAGE, OWN)
    assert (answer.status_code, answer["Retry-After"]) == (503, "1")
    assert b"This node is checking other passwords" in answer.content
    waiting += [hashing._run(lambda: True, is_login=True) for _ in range(passwords.FOR_LOGINS)]
    with pytest.raises(Refused, match="checking other passwords"):
        hashing.is_right("x", "", is_login=True)
    free.set()
    assert all(one.result(60) for one in waiting)
    # Places are given back just after the result is there. One thread does it, so all earlier ones are free after this.
    assert hashing._threads.submit(lambda: True).result(60)
    assert client.post(OWN_PAGE, OWN).status_code == 302


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("command", [ChangeUser(name="alice", sign_out=True), DeleteUser(name="alice")])
def test_what_others_do_meanwhile_ends_the_session(
    node: UserNode, monkeypatch: pytest.MonkeyPatch, command: Any, before: bool
) -> None:
    client, submit = logged_in(), node.submit

    async def meanwhile(own: Any, **options: Any) -> Any:
        if not isinstance(own, ChangeUser):
            return await submit(own, **options)
        if before:
            node.apply(command)
        result = await submit(own, **options)
        if not before:
            node.apply(command)
        return result

    monkeypatch.setattr(node, "submit", meanwhile)
    assert client.post(OWN_PAGE, OWN).status_code in (200, 302)
    assert not is_logged_in(client)


# --------------------------------------------------------- pages of the admin


def test_an_admin_makes_and_changes_users(node: UserNode) -> None:
    client = logged_in("boss")
    form = {"name": "carol", "group": "operator", "password": NEW}
    assert client.post(f"{ROW}add/", form).status_code == 302
    carol = node.users.users["carol"]
    assert (carol.group, carol.is_active, carol.created_by) == ("operator", True, "user boss")
    assert is_logged_in(browser()) is False
    assert log_in(browser(), "carol", NEW).status_code == 302

    again = client.post(f"{ROW}add/", form, follow=True).content.decode()
    assert "Not saved: there is a user carol already" in again
    weak = client.post(f"{ROW}add/", {**form, "name": "dave", "password": "12345678"}, follow=True).content.decode()
    assert "This password is too common" in weak
    named = client.post(f"{ROW}add/", {**form, "name": "long-enough", "password": "Long-Enough"}, follow=True).content.decode()
    assert "must not be the name" in named
    assert "Use letters, digits" in client.post(f"{ROW}add/", {**form, "name": "a b"}).content.decode()
    assert set(node.users.users) == {"boss", "alice", "carol"}

    hash_before = carol.password_hash
    assert client.post(f"{ROW}carol/change/", {"group": "viewer", "active": "on", "password": ""}).status_code == 302
    assert (carol.group, carol.password_hash) == ("viewer", hash_before)
    assert client.post(f"{ROW}carol/change/", {"group": "viewer", "active": "on", "password": PASSWORD}).status_code == 302
    assert carol.password_hash != hash_before
    generation = carol.generation
    client.post(f"{ROW}carol/change/", {"group": "viewer", "active": "on", "password": ""})
    assert carol.generation == generation, "nothing was changed"

    # Django's own log names the user, who has no row in a table of this node but the one that was made for it.
    entries = LogEntry.objects.order_by("pk")
    assert [(entry.user.get_username(), entry.user_id) for entry in entries][:1] == [("boss", -1)]
    assert "carol" in client.get("/admin/").content.decode()
    assert [record.operation for record in node.machine("audit").records].count("users.create") >= 1
    assert not [record for record in node.machine("audit").records if NEW in record.request or PASSWORD in record.request]


def test_an_old_form_changes_only_what_was_changed_in_it(node: UserNode) -> None:
    client, user = logged_in("boss"), node.users.users["alice"]
    page = client.get(f"{ROW}alice/change/").content.decode()
    hidden = dict(re.findall(r'<input type="hidden" name="(initial-[a-z]+)" value="([^"]*)"', page))
    assert hidden == {"initial-group": "viewer", "initial-active": "True"}
    node.apply(ChangeUser(name="alice", active=False))
    form = {**hidden, "group": "operator", "active": "on", "password": ""}
    assert client.post(f"{ROW}alice/change/", form).status_code == 302
    assert (user.group, user.is_active) == ("operator", False)
    node.apply(ChangeUser(name="alice", group="viewer", active=True))
    form = {"initial-group": "operator", "initial-active": "True", "group": "operator", "password": ""}
    assert client.post(f"{ROW}alice/change/", form).status_code == 302
    assert (user.group, user.is_active) == ("viewer", False)
    node.apply(ChangeUser(name="alice", active=True))
    form = {"initial-group": "viewer", "initial-active": "False", "group": "viewer", "password": NEW}
    assert client.post(f"{ROW}alice/change/", form).status_code == 302
    assert (user.group, user.is_active) == ("viewer", True)
    assert log_in(browser(), "alice", NEW).status_code == 302


def test_actions_of_an_admin(node: UserNode) -> None:
    client, alice = logged_in("boss"), logged_in()
    user = node.users.users["alice"]

    def act(action: str) -> str:
        return client.post(
            ROW, {"action": action, "_selected_action": ["alice"], "confirmed": "1", "reason": "a test"}, follow=True
        ).content.decode()

    assert "1 signed out." in act("sign_out")
    assert not is_logged_in(alice)
    assert "1 disabled." in act("disable")
    assert not user.is_active
    assert "1 enabled." in act("enable")
    assert user.is_active
    assert "1 deleted." in act("delete")
    assert set(node.users.users) == {"boss"}


def test_a_name_that_is_used_again_has_a_row_of_its_own(node: UserNode) -> None:
    logged_in()
    node.apply(DeleteUser(name="alice"))
    node.add("alice", "viewer")
    logged_in()
    assert set(LocalUser.objects.values_list("pk", "username")) == {(-2, "alice (earlier -2)"), (-3, "alice")}
    assert {row.password for row in LocalUser.objects.all()} == {"!"}


# ---------------------------------------------------------------- operations


def test_hashes_are_shown_nowhere(node: UserNode) -> None:
    client = logged_in("boss")
    answer = client.get("/users", headers={"Accept": "application/json"})
    assert [user["name"] for user in answer.json()["users"]] == ["boss", "alice"]
    for page in (answer, client.get(ROW), client.get(f"{ROW}alice/change/")):
        assert node.users.users["alice"].password_hash.rpartition("$")[2] not in page.content.decode()


def test_a_change_needs_something_to_change() -> None:
    with pytest.raises(ValueError, match="at least one of"):
        ChangeUserRequest(name="alice")


def test_requests_with_passwords_are_never_stored_for_a_repeat(node: UserNode) -> None:
    for operation in operations():
        fields = [name for name in operation.request.__struct_fields__ if "password" in name]
        assert set(fields) == set(operation.secrets)
        assert not (fields and operation.takes_request_id)
    assert "password" in CreateUserRequest.__struct_fields__


def test_the_log_shows_no_hash() -> None:
    secret = "md5$salt$hash"
    commands = [
        CreateUser(name="a", group="viewer", password_hash=secret),
        BeginUsers(users=[NewUser("b", "admin", secret)], by="node-1"),
        ChangeUser(name="a", sign_out=True),
    ]
    data = encode_batch(1, [], [encode_group("node-1", 1, 1, [], [encode_command(command) for command in commands])])
    shown = str(show(Entry(1, 1, EntryKind.COMMANDS, data), committed=True, applied=True, skipped=False))
    assert secret not in shown
    assert shown.count(HIDDEN) == 2


# ------------------------------------------------- users of an older release


def test_users_of_this_nodes_database_log_in_until_the_cluster_has_users(node: UserNode) -> None:
    node.services["users"] = Users()
    answer = log_in(browser(), "admin")
    assert (answer.status_code, answer["Retry-After"]) == (503, "1")
    assert b"There is no user yet" in answer.content
    LocalUser.objects.create_superuser("admin", password=PASSWORD)
    client = logged_in("admin")
    assert is_logged_in(client)
    assert log_in(browser(), "admin", "wrong").status_code == 200
    node.services["users"] = node.users
    assert not is_logged_in(client)
    assert log_in(browser(), "admin").status_code == 200


def test_which_of_them_become_users_of_the_cluster(node: UserNode) -> None:
    LocalUser.objects.create_superuser("admin", password=PASSWORD)
    LocalUser.objects.create_user("reader", password=PASSWORD, is_staff=True)
    LocalUser.objects.create_user("é", password=PASSWORD, is_staff=True)
    LocalUser.objects.create_user("no-staff", password=PASSWORD)
    LocalUser.objects.create_user("ended", password=PASSWORD, is_staff=True, is_active=False)
    logged_in("boss")
    taken = first_user._local_users()
    assert [(user.name, user.group) for user in taken] == [("admin", "admin"), ("reader", "viewer")]
    assert taken[0].password_hash == LocalUser.objects.get(username="admin").password
    assert set(first_user._retire_local_users()) == {"admin", "reader", "é", "no-staff"}
    assert first_user._retire_local_users() == []


def test_hashing_for_the_loop(node: UserNode) -> None:
    hashing = Hashing()

    async def both() -> tuple[bool, bool]:
        made = await hashing.hash_given("weak")
        return await hashing.is_right_soon("weak", made), await hashing.is_right_soon("other", made)

    assert asyncio.run(both()) == (True, False)
