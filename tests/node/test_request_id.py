"""The field `request_id` is taken off a request, on every entry point, and identifies the call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dss_api.codec import RequestDecoder
from dss_api.errors import Refused
from dss_api.openapi import OpenApi
from dss_api.operation import Operation
from dss_api.request_id import Identified
from dss_cache.core.commands import PutRequest
from dss_locks.core.commands import Acquire
from dss_project.registry import operations

BY_NAME = {operation.name: operation for operation in operations()}
#: calls that change something besides the replicated state, or only this node; and calls with a password, which is hashed with a new salt
WITHOUT_ID = {
    "raft.start_election",
    "raft.transfer",
    "raft.skip",
    "raft.save_snapshot",
    "raft.add_member",
    "raft.remove_member",
    "requests.open",
    "requests.close",
    "users.create",
    "users.change",
    "locks.check",
    "cache.get",
    "cache.mget",
    "cache.clear",
    "cache.evict",
}


def decoded(name: str, request_id: str | None = None, **fields: Any) -> Any:
    given = {} if request_id is None else {"request_id": request_id}
    return RequestDecoder(BY_NAME[name]).body(json.dumps({**fields, **given}).encode())


def digest(name: str, **fields: Any) -> bytes:
    return decoded(name, "s:1", **fields).id.digest  # type: ignore[no-any-return]


def refusal(name: str, request_id: Any, **fields: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        decoded(name, request_id, **fields)
    return refused.value


def test_every_call_that_changes_the_replicated_state_takes_it():
    without = {name for name, operation in BY_NAME.items() if operation.method != "GET" and not operation.takes_request_id}
    assert without == WITHOUT_ID
    assert not any(operation.takes_request_id for operation in BY_NAME.values() if operation.method == "GET")


def test_a_request_with_an_id_is_the_request_without_it_and_the_id():
    plain = decoded("locks.acquire", key="a", client="c", wait_ms="5")
    assert type(plain) is Acquire
    found = decoded("locks.acquire", "abc:7:3", key="a", client="c", wait_ms="5")
    assert type(found) is Identified
    assert (type(found.request), found.request) == (Acquire, plain)
    assert (found.id.session, found.id.number, found.id.answered, found.id.part) == ("abc", 7, 3, 0)
    assert decoded("locks.acquire", "abc:7", key="a", client="c").id.answered == 0


def test_the_query_of_a_delete_has_it_too():
    decoder = RequestDecoder(BY_NAME["queue.topic_delete"])
    assert decoder.query(b"topic=orders&request_id=s:1").id.number == 1
    assert type(decoder.query(b"topic=orders")) is BY_NAME["queue.topic_delete"].request


def test_a_name_with_escapes_is_the_same_name():
    decoder = RequestDecoder(BY_NAME["cache.put"])
    assert decoder.body(b'{"key": "k", "value": 1, "request\\u005fid": "s:1"}').id.number == 1
    assert type(decoder.body(b'{"key": "\\u0041", "value": 1}')) is PutRequest


def test_null_and_a_text_that_only_looks_like_it_are_no_id():
    assert type(decoded("cache.put", key="request_id", value=1)) is PutRequest
    assert type(RequestDecoder(BY_NAME["cache.put"]).body(b'{"key": "k", "value": 1, "request_id": null}')) is PutRequest


@pytest.mark.parametrize(
    "text", ["", "s", "s:", ":1", "s:0", "s:-1", "s:1:", "s:1:2:3", "s:x", f"s:{2**53 + 1}", f"s:1:{2**53 + 1}", "é:1"]
)
def test_a_wrong_id_is_refused_by_name(text):
    found = refusal("cache.put", text, key="k", value=1)
    assert (found.code, found.extra) == ("invalid", {"field": "request_id"})


def test_a_call_that_does_not_take_it_refuses_it_by_name():
    for name, fields in (("cache.get", {"key": "k"}), ("raft.transfer", {})):
        assert refusal(name, "s:1", **fields).extra == {"field": "request_id"}
    found = refusal("queue.publish", None, topic="t", messages=[{"value": 1, "request_id": "s:1"}])
    assert found.extra == {"field": "messages[0].request_id"}


def test_other_faults_are_found_as_without_an_id():
    assert refusal("cache.put", "s:1", key="", value=1).extra == {"field": "key"}
    assert refusal("locks.acquire", "s:1", key="a", keys=["a"], client="c").extra == {"field": "key"}


def test_the_digest_is_of_the_call_and_of_the_fields_that_are_no_defaults():
    first = digest("cache.put", key="k", value={"a": 1})
    assert first == digest("cache.put", value={"a": 1}, ttl_ms=0, if_version=None, key="k")
    assert first == decoded("cache.put", "other:99:98", key="k", value={"a": 1}).id.digest
    others = [
        digest("cache.put", key="k", value={"a": 2}),
        digest("cache.put", key="k", value={"a": 1}, ttl_ms=1),
        digest("cache.add", key="k", value={"a": 1}),
    ]
    assert len({first, *others}) == 4


def test_a_release_with_one_more_field_computes_the_same_digest():
    class Newer(PutRequest, kw_only=True):
        more: int = 3

    operation = BY_NAME["cache.put"]
    other = Operation(**{**{name: getattr(operation, name) for name in Operation.__slots__}, "request": Newer})
    found = RequestDecoder(other).body(b'{"key": "k", "value": 1, "request_id": "s:1"}')
    assert found.id.digest == digest("cache.put", key="k", value=1)


def test_openapi_describes_it_where_it_is_taken():
    api = OpenApi(operations())
    schemas = api.components()["schemas"]
    for operation in operations():
        described = api.describe(operation)
        if operation.method in ("GET", "DELETE"):
            fields = {parameter["name"] for parameter in described.get("parameters", ())}
        else:
            reference = described["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            fields = set(schemas[reference.rpartition("/")[2]].get("properties", ()))
        assert ("request_id" in fields) == operation.takes_request_id, operation.name
