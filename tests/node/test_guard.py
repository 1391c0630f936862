"""Who calls: tokens, their ends, the key holder's proof; and prefixes that a hostile client might use."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from dss_api import guard as guards
from dss_api import token_text
from dss_api.caller import ANYONE, Caller
from dss_api.codec import RequestDecoder
from dss_api.errors import Refused
from dss_api.guard import Guard
from dss_api.page_access import PageAccess
from dss_api.request_id import SEAL_MARK, SEAL_PURPOSE
from dss_api.result import Result
from dss_api.rights import EVERYTHING, OF_GROUP, Access, Prefixed, check, locks, split_scope
from dss_api.routes import Route, Routes, require_right
from dss_api.token_text import key_holder_text, token_key
from dss_dev.access_world import KEY, FakeBook, make_guard
from dss_project.registry import operations, subscriptions
from dss_raft.request_operations import OpenRequestSessionRequest

OPERATIONS = {one.name: one for one in (*operations(), *subscriptions())}


def refusal(guard: Guard, header: str) -> str:
    with pytest.raises(Refused) as refused:
        guard.authenticate(header.encode())
    assert refused.value.code == "unauthenticated"
    return refused.value.detail


# ---------------------------------------------------------------------- open and closed


@pytest.mark.parametrize(
    ("api_token", "may_be_open", "has_token", "is_open"),
    [
        ("", True, False, True),
        ("", True, True, False),
        ("", False, False, False),
        ("", False, True, False),
        ("secret", True, False, False),
        ("secret", False, True, False),
    ],
)
def test_when_calls_need_a_token(api_token: str, may_be_open: bool, has_token: bool, is_open: bool) -> None:
    book = FakeBook()
    book.is_closed = has_token
    guard = Guard(api_token, may_be_open, [KEY])
    guard.use(book)
    assert guard.is_open is is_open
    if is_open:
        assert guard.authenticate(b"") is guard.authenticate(b"Bearer anything") is ANYONE
    else:
        assert refusal(guard, "") == guards.TOKEN_WANTED


def test_the_api_token_may_do_everything_beside_the_others() -> None:
    book = FakeBook()
    guard = make_guard(book, "secret")
    assert guard.authenticate(b"Bearer secret").access.everything
    assert guard.authenticate(b"bearer   secret ").access.everything
    assert not guard.authenticate(book.add("read").header.encode()).access.everything
    assert refusal(guard, "Bearer secret2") == refusal(guard, "Basic secret") == guards.NOT_VALID


# ---------------------------------------------------------------------------- one token


def test_a_token_ends_by_rotation_revocation_and_expiry() -> None:
    book = FakeBook()
    guard = make_guard(book)
    token = book.add("read")
    old = token.header.encode()
    assert guard.authenticate(old).name == f"token {token.id} (read)"
    token.generation, token.previous_until_ms, token.previous_key = 2, 1, KEY.id
    guard.changed()
    assert guard.authenticate(old).owner == guard.authenticate(token.header.encode()).owner == token.id
    token.previous_until_ms, token.previous_key = 0, ""
    guard.changed()
    assert refusal(guard, old.decode()) == guards.NOT_VALID
    token.is_expired = True
    guard.changed()
    assert refusal(guard, token.header) == "the token has expired"
    assert refusal(guard, old.decode()) == guards.NOT_VALID, "only the bearer of the secret learns that it has expired"
    del book.tokens[token.id]
    guard.changed()
    assert refusal(guard, token.header) == guards.NOT_VALID


def test_a_change_of_the_key() -> None:
    old, new = KEY, token_key("another secret")
    book = FakeBook()
    token = book.add("read")
    for keys, is_valid in (([old], True), ([new, old], True), ([new], False), ([], False)):
        guard = Guard("", False, keys)
        guard.use(book)
        assert guard.is_valid(token.header.encode()) is is_valid
    assert old.id != new.id
    guard = Guard("", False, [new])
    guard.use(book)
    with capture_logs() as logs:
        assert not guard.is_valid(token.header.encode())
        assert not guard.is_valid(token.header.encode())
    assert [(line["event"], line["key"]) for line in logs] == [("access.unknown_key", old.id)]
    assert old.id not in old.key.hex()


def test_only_valid_headers_are_kept() -> None:
    book = FakeBook()
    guard = make_guard(book)
    header = book.add("read").header
    for number in range(1000):
        refusal(guard, f"Bearer dss1_{number:012x}_{'0' * 64}")
    guard.authenticate(header.encode())
    assert list(guard._cached) == [header.encode()]


@pytest.mark.parametrize(
    "text",
    [
        "dss1_",
        "dss1__",
        "dss1_a_b",
        "dss1_" + "a" * 200,
        f"dss1_{'é' * 12}_{'0' * 64}",
        f"dss1_key_{'0' * 64}",
        f"dss1_keyzz_{'0' * 64}",
        f"dss1_key{2**200:x}_{'0' * 64}",
        f"DSS1_0123456789ab_{'0' * 64}",
        "\x00",
        "",
    ],
)
def test_texts_that_are_no_token(text: str) -> None:
    with pytest.raises(Refused, match="unauthenticated"):
        make_guard(FakeBook()).authenticate(b"Bearer " + text.encode())


def test_the_proof_of_the_key_holder_is_valid_for_some_minutes() -> None:
    now = 1_800_000_000
    guard = Guard("", False, [KEY], wall_s=lambda: now)
    header = f"Bearer {key_holder_text(KEY, now)}".encode()
    assert guard.authenticate(header).access.everything
    assert guard._cached == {}
    assert "clocks" in refusal(guard, f"Bearer {key_holder_text(KEY, now - 301)}")
    assert refusal(guard, f"Bearer {key_holder_text(token_key('other'), now)}") == guards.NOT_VALID


def test_which_tokens_were_used() -> None:
    book = FakeBook()
    guard = make_guard(book, "secret")
    token, other = book.add("read"), book.add("read", "operate")
    for header in (token.header, token.header, "Bearer secret"):
        guard.authenticate(header.encode())
    assert guard.take_used() == [token.id]
    assert guard.take_used() == []
    guard.authenticate(other.header.encode())
    assert guard.take_used() == [other.id]


def test_who_asks_to_sign_has_proven_nothing() -> None:
    """The id of a token is known to many: it is the access key of the SQS port, and stands in the audit trail."""
    book = FakeBook()
    guard = make_guard(book)
    token = book.add("read")
    caller, _ = guard.signer(token.id)
    for header in (f"signer {token.id}", token.id, f"Bearer {token.id}", f"Bearer signer {token.id}"):
        refusal(guard, header)
    caller.used = True
    assert guard.take_used() == [token.id]
    guard.changed()
    assert guard.signer(token.id)[0] is not caller


async def test_work_ends_with_its_token() -> None:
    book = FakeBook()
    guard = make_guard(book)
    token = book.add("read")
    task = asyncio.ensure_future(guard.while_valid(token.header.encode(), asyncio.sleep(60)))
    await asyncio.sleep(0)
    book.add("operate")
    guard.changed()
    await asyncio.sleep(0)
    assert not task.done()
    book.tokens.clear()
    guard.changed()
    with pytest.raises(Refused, match="unauthenticated"):
        await task
    assert guard._watchers == {}


# ---------------------------------------------------------------------------- prefixes


def may(scopes: list[str], name: str, request: dict[str, Any]) -> bool:
    operation = OPERATIONS[name]
    decoded = RequestDecoder(operation).body(msgspec.json.encode(request))
    try:
        require_right(operation.needs, Caller("test", Access(scopes), "0" * 12, [KEY]), decoded)
    except Refused as refused:
        return {"forbidden": False}[refused.code]
    return True


LOCK = {"client": "c"}
ACK = {"topic": "orders", "group": "g", "msg_id": "1-0"}


@pytest.mark.parametrize(
    ("scopes", "name", "request_", "expected"),
    [
        (["locks:a/"], "locks.acquire", {"key": "a/1", **LOCK}, True),
        (["locks:a/"], "locks.acquire", {"key": "a", **LOCK}, False),
        (["locks:a/"], "locks.acquire", {"key": " a/1", **LOCK}, False),
        (["locks:a/"], "locks.acquire", {"key": "A/1", **LOCK}, False),
        (["locks:a/"], "locks.acquire", {"keys": ["a/1", "a/2"], **LOCK}, True),
        (["locks:a/"], "locks.acquire", {"keys": ["a/1", "b/1"], **LOCK}, False),
        (["locks:a/", "locks:b/"], "locks.acquire", {"keys": ["a/1", "b/1"], **LOCK}, True),
        (["locks:"], "locks.acquire", {"keys": ["a/1", "b/1"], **LOCK}, True),
        # the same letter, composed and decomposed: two keys, and two prefixes
        (["locks:é"], "locks.acquire", {"key": "e\u0301", **LOCK}, False),
        (["locks:e\u0301"], "locks.acquire", {"key": "é", **LOCK}, False),
        (["locks:a:b"], "locks.acquire", {"key": "a:b:c", **LOCK}, True),
        (["locks:a/"], "locks.watch", {"prefix": "a/"}, True),
        (["locks:a/"], "locks.watch", {"prefix": "a/b"}, True),
        (["locks:a/"], "locks.watch", {"prefix": "a"}, False),
        (["locks:a/"], "locks.watch", {"prefix": ""}, False),
        (["locks:"], "locks.watch", {"prefix": ""}, True),
        (["locks:a/"], "locks.watch", {"client": "a/1"}, False),
        (["locks:"], "locks.watch", {"client": "a/1"}, False),
        (["locks:a/"], "locks.watch", {"keys": ["a/1", "b"]}, False),
        (["queue:a:publish"], "queue.publish", {"topic": "a", "messages": [{"value": 1}]}, True),
        (["queue:a:publish"], "queue.publish", {"topic": "b", "key": "a", "value": 1}, False),
        (["queue:a:b:publish"], "queue.publish", {"topic": "a:b", "value": 1}, True),
        (["queue:a:publish"], "queue.consume", {"topic": "a", "group": "g"}, False),
        (["queue:a:consume"], "queue.publish", {"topic": "a", "value": 1}, False),
        (["queue:a:consume"], "queue.redrive", {"topic": "a", "group": "g"}, False),
        (["queue:a:consume"], "queue.peek", {"topic": "b", "group": "a", "dead": True}, False),
        (["queue:orders:consume"], "queue.ack", ACK, True),
        (["queue:orders:consume"], "queue.ack", {**ACK, "publish": [], "release": []}, True),
        (["queue:orders:consume"], "queue.ack", {**ACK, "publish": [{"topic": "orders", "value": 1}]}, False),
        (["queue:orders:consume"], "queue.ack", {**ACK, "release": [{"key": "orders", "client": "c"}]}, False),
        (
            ["queue:orders:consume", "queue:out:publish", "locks:o/"],
            "queue.ack",
            {**ACK, "publish": [{"topic": "out", "value": 1}], "release": [{"key": "o/1", "client": "c"}]},
            True,
        ),
        (
            ["queue:orders:consume", "queue:out:publish", "locks:o/"],
            "queue.ack",
            {**ACK, "publish": [{"topic": "out", "value": 1}, {"topic": "in", "value": 1}]},
            False,
        ),
        (
            ["queue:orders:consume", "queue:out:publish", "locks:o/"],
            "queue.ack",
            {**ACK, "release": [{"key": "o/1", "client": "c"}, {"key": "p/1", "client": "c"}]},
            False,
        ),
        (["queue:out:publish", "locks:o/"], "queue.ack", ACK, False),
        (["queue:a:consume"], "queue.stats", {}, False),
        (["queue:a:consume"], "queue.stats", {"topic": ""}, False),
        (["queue::consume"], "queue.stats", {"topic": ""}, True),
        (["queue:a:consume"], "queue.stats", {"topic": "ab"}, True),
        (["queue:a:consume"], "queue.stats", {"topics": ["ab", "ac"]}, True),
        (["queue:a:consume"], "queue.stats", {"topics": ["ab", "b"]}, False),
        (["cache:a:read"], "cache.mget", {"keys": ["a", "b"]}, False),
        (["cache:a:read"], "cache.mget", {"keys": ["a", "ab"]}, True),
        (["cache:a:read"], "cache.lines", {}, False),
        (["cache:a:write"], "cache.mput", {"items": [{"key": "a", "value": 1}, {"key": "b", "value": 1}]}, False),
        (["cache:a:write"], "cache.get", {"key": "a"}, False),
        (["cache:a:read"], "cache.put", {"key": "a", "value": 1}, False),
        (["read"], "cache.get", {"key": "a"}, False),
        (["operate", "cluster", "read"], "tokens.create", {"name": "a", "scopes": ["all"]}, False),
    ],
)
def test_prefixes(scopes: list[str], name: str, request_: dict[str, Any], expected: bool) -> None:
    assert may(scopes, name, request_) is expected


@pytest.mark.parametrize(
    ("scope", "parts"),
    [
        ("read", ("read", "", "")),
        ("locks:", ("locks", "", "")),
        ("locks:a:b:c", ("locks", "a:b:c", "")),
        ("queue::publish", ("queue", "", "publish")),
        ("queue:a:publish:consume", ("queue", "a:publish", "consume")),
        ("cache:ä:write", ("cache", "ä", "write")),
    ],
)
def test_scopes(scope: str, parts: tuple[str, str, str]) -> None:
    assert split_scope(scope) == parts


@pytest.mark.parametrize(
    "scope",
    [
        "",
        "Read",
        "read:",
        "all:x",
        "locks",
        "queue",
        "queue:",
        "queue:a",
        "queue:publish",
        "queue:a:read",
        "cache:a:consume",
        "cache:a:",
        "lock:a",
        "locks:a\n",
        "queue:a\x00:publish",
        f"locks:{'a' * 513}",
        "operate ",
        "*",
    ],
)
def test_texts_that_are_no_scope(scope: str) -> None:
    with pytest.raises(ValueError, match=r"scope|end with|prefix"):
        split_scope(scope)
    assert not Access([scope]).plain
    assert not "a".startswith(Access([scope]).prefixes("locks", ""))


def test_an_operation_cannot_name_a_field_that_its_request_does_not_have() -> None:
    with pytest.raises(ValueError, match="has no field topic"):
        check(Prefixed("queue", "publish", ("topic",)), OPERATIONS["locks.acquire"].request)
    with pytest.raises(ValueError, match=r"has no field keys\.key"):
        check(locks("keys.key"), OPERATIONS["locks.acquire"].request)


NAMES = {"locks": {"key", "keys", "prefix"}, "queue": {"topic"}, "cache": {"key", "keys"}}


def names_of(struct: type[msgspec.Struct], wanted: set[str], path: str = "") -> set[str]:
    found = set()
    for field in msgspec.structs.fields(struct):
        at = f"{path}{field.name}"
        if field.name in wanted:
            found.add(at)
        for inner in _structs_in(field.type):
            found |= names_of(inner, wanted, f"{at}.")
    return found


def _structs_in(declared: Any) -> list[type[msgspec.Struct]]:
    if isinstance(declared, type) and issubclass(declared, msgspec.Struct):
        return [declared]
    return [one for part in getattr(declared, "__args__", ()) for one in _structs_in(part)]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_field_with_a_key_or_a_topic_is_checked(name: str) -> None:
    """A need with prefixes that forgets one of them would let a token reach a key that it does not cover."""
    operation = OPERATIONS[name]
    area = name.partition(".")[0]
    checked = {field for _, field in operation.needs.paths()}
    if area in NAMES and checked:
        assert names_of(operation.request, NAMES[area]) <= checked
    if name == "queue.ack":
        assert "release.key" in checked


# ----------------------------------------------------------------------------- sessions


def test_a_session_belongs_to_its_token() -> None:
    book = FakeBook()
    guard = make_guard(book, "secret")
    first, second = (guard.authenticate(book.add(scope).header.encode()) for scope in ("locks:", "read"))
    everything = guard.authenticate(b"Bearer secret")
    sealed = first.seal(SEAL_PURPOSE, "abc", SEAL_MARK)
    assert first.check_seal(SEAL_PURPOSE, sealed, SEAL_MARK, "session") == "abc"
    assert everything.check_seal(SEAL_PURPOSE, sealed, SEAL_MARK, "session") == "abc"
    assert everything.seal(SEAL_PURPOSE, "abc", SEAL_MARK) == ANYONE.seal(SEAL_PURPOSE, "abc", SEAL_MARK) == "abc"
    for caller, text in (
        (second, sealed),
        (first, "abc"),
        (first, "abc-"),
        (first, sealed[:-1]),
        (first, sealed.replace("abc", "abd")),
    ):
        with pytest.raises(Refused, match="forbidden"):
            caller.check_seal(SEAL_PURPOSE, text, SEAL_MARK, "session")
    with pytest.raises(Refused, match="forbidden"):
        first.check_seal("another purpose", sealed, SEAL_MARK, "session")


def test_a_user_without_all_rights_has_no_session_of_a_token() -> None:
    token = make_guard(book := FakeBook()).authenticate(book.add("read").header.encode())
    sealed = token.seal(SEAL_PURPOSE, "abc", SEAL_MARK)
    for text in (sealed, "abc"):
        with pytest.raises(Refused, match="forbidden"):
            Caller("user alice", OF_GROUP["operator"]).check_seal(SEAL_PURPOSE, text, SEAL_MARK, "session")
    assert Caller("user ann", OF_GROUP["admin"]).check_seal(SEAL_PURPOSE, sealed, SEAL_MARK, "session") == "abc"


async def test_request_sessions_are_for_tokens_and_for_who_may_do_everything() -> None:
    """Nothing would limit those of a user who may only read."""
    opened: list[str] = []

    async def submit(command: Any) -> Result:
        opened.append(command.session)
        return Result({})

    async def opens(caller: Caller) -> str:
        route = Route(OPERATIONS["requests.open"])
        return (await route.carry_out(lambda: node, OpenRequestSessionRequest(), caller, "http", "")).body.decode()

    node = SimpleNamespace(submit=submit, unusable_reason="")

    token = make_guard(book := FakeBook()).authenticate(book.add("read").header.encode())
    for caller, may in (
        (ANYONE, True),
        (Caller("DSS_API_TOKEN", EVERYTHING), True),
        (Caller("user ann", OF_GROUP["admin"]), True),
        (token, True),
        (Caller("user alice", OF_GROUP["operator"]), False),
        (Caller("user bob", OF_GROUP["viewer"]), False),
    ):
        # In a task of its own, as a call: it sets the caller.
        answer = await asyncio.create_task(opens(caller))
        assert ("forbidden" not in answer) == may, caller.name
    assert len(opened) == 4


def test_sessions_outlive_a_change_of_the_key_while_nodes_have_both() -> None:
    """A seal of a node that has one key counts on a node that has both, and the other way around, before and after the rotation."""
    book = FakeBook()
    token = book.add("locks:")
    other = token_key("another secret")
    old, both = Guard(keys=[KEY], is_open=False), Guard(keys=[other, KEY], is_open=False)
    for guard in (old, both):
        guard.use(book)
    header = token.header.encode()
    on_old, on_both = old.authenticate(header), both.authenticate(header)
    sealed = on_old.seal(SEAL_PURPOSE, "abc", SEAL_MARK)
    assert on_both.seal(SEAL_PURPOSE, "abc", SEAL_MARK) == sealed
    assert on_both.check_seal(SEAL_PURPOSE, sealed, SEAL_MARK, "session") == "abc"
    rotated = Caller("t", EVERYTHING, token.id, [other, KEY])
    assert rotated.check_seal(SEAL_PURPOSE, sealed, SEAL_MARK, "session") == "abc"
    assert rotated.seal(SEAL_PURPOSE, "abc", SEAL_MARK) != sealed
    with pytest.raises(Refused, match="forbidden"):
        Caller("t", EVERYTHING, token.id, [other]).check_seal(SEAL_PURPOSE, sealed, SEAL_MARK, "session")


def test_a_request_id_of_another_token_is_refused() -> None:
    book = FakeBook()
    guard = make_guard(book)
    first, second = (guard.authenticate(book.add("locks:", scope).header.encode()) for scope in ("read", "operate"))
    session = first.seal(SEAL_PURPOSE, "a" * 32, SEAL_MARK)
    operation = OPERATIONS["locks.acquire"]
    decoded = RequestDecoder(operation).body(msgspec.json.encode({"key": "a", "client": "c", "request_id": f"{session}:1"}))
    require_right(operation.needs, first, decoded)
    with pytest.raises(Refused, match="belongs to another token"):
        require_right(operation.needs, second, decoded)


# -------------------------------------------------------------------------------- pages


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 401),
        ("GET", "/", {"accept": "text/html,application/xhtml+xml"}, 302),
        ("HEAD", "/api/docs", {"accept": "text/html,application/xhtml+xml"}, 302),
        ("POST", "/lock/acquire", {"accept": "text/html,application/xhtml+xml"}, 401),
        ("GET", "/api/schema", {}, 401),
        ("GET", "/api/schema", {"cookie": "a=b; session=xyz"}, None),
        ("GET", "/metrics", {"cookie": "session=xyz"}, 401),
        ("GET", "/metrics", {"authorization": "READ"}, None),
        ("GET", "/metrics", {"authorization": "LOCKS"}, 403),
        ("GET", "/", {"authorization": "LOCKS"}, 403),
        ("GET", "/", {"authorization": "Bearer wrong", "cookie": "session=xyz"}, 401),
        ("GET", "/lock/status", {"authorization": "LOCKS"}, None),
        ("GET", "//metrics", {}, 401),
        ("GET", "/metrics/", {}, 401),
        ("GET", "/admin/", {}, None),
        ("POST", "/admin/login/", {}, None),
        ("GET", "/administrator", {}, 401),
        ("GET", "/static/x.css", {}, None),
        ("GET", "/favicon.ico", {}, None),
        ("GET", "/health", {"accept": "text/html"}, None),
        ("POST", "/health", {}, 401),
    ],
)
def test_pages_of_a_closed_node(method: str, path: str, headers: dict[str, str], status: int | None) -> None:
    book = FakeBook()
    tokens = {"READ": book.add("read").header, "LOCKS": book.add("locks:").header}
    access = PageAccess(
        make_guard(book), Routes(operations()), ("/admin", "/admin/", "/favicon.ico", "/static/"), "session", "/admin/login/"
    )
    given = [(name.encode(), tokens.get(value, value).encode()) for name, value in headers.items()]
    answer = access(method, path, given)
    assert (answer and answer.status) == status
    if status == 302:
        assert answer is not None
        assert dict(answer.headers)[b"location"].startswith(b"/admin/login/?next=")


def test_opened_pages() -> None:
    access = PageAccess(make_guard(FakeBook()), Routes(operations()), ("/metrics", "/"), "session", "/admin/login/")
    assert access("GET", "/metrics", []) is access("GET", "/", []) is None
    assert access("GET", "/api/docs", []) is not None


def test_the_secret_is_never_in_a_text_of_a_refusal() -> None:
    guard = make_guard(FakeBook())
    text = token_text.text_of(KEY, "0123456789ab", 1)
    assert text not in refusal(guard, f"Bearer {text}")
    assert text[-64:] not in refusal(guard, f"Basic {text}")
