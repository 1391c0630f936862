"""Validation of requests: every refusal names the field."""

import msgspec
import pytest

from dss_locks.core.commands import Acquire, ForceRelease, Release, Renew


def decode(type_, **fields):
    return msgspec.convert(fields, type_, strict=False)


def test_the_required_fields_are_enough():
    command = decode(Acquire, key="k", client="a")
    assert (command.mode, command.ttl_ms, command.wait_ms, command.meta) == ("exclusive", 30_000, 0, None)


def test_numbers_may_come_as_text():
    assert decode(Acquire, key="k", client="a", ttl_ms="5000", wait_ms="100").ttl_ms == 5000


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"client": "a"}, "`key`"),
        ({"key": "k"}, "`client`"),
        ({"key": "k", "keys": ["k"], "client": "a"}, "`keys`"),
        ({"keys": [], "client": "a"}, "keys"),
        ({"keys": ["k", "k"], "client": "a"}, "`keys`"),
        ({"keys": [f"k{n}" for n in range(65)], "client": "a"}, "keys"),
        ({"keys": ["k", "ä" * 300], "client": "a"}, "`keys`"),
        ({"key": "", "client": "a"}, "key"),
        ({"key": "a\nb", "client": "a"}, "key"),
        ({"key": "ä" * 300, "client": "a"}, "`key`"),
        ({"key": "k", "client": "ä" * 300}, "`client`"),
        ({"key": "k", "client": "a", "mode": "write"}, "mode"),
        ({"key": "k", "client": "a", "ttl_ms": -1}, "ttl_ms"),
        ({"key": "k", "client": "a", "wait_ms": 20_001}, "wait_ms"),
        ({"key": "k", "client": "a", "ttl": 5}, "`ttl`"),
        ({"key": "k", "client": "a", "meta": {f"m{n}": 1 for n in range(17)}}, "`meta`"),
    ],
)
def test_a_bad_request_is_refused_by_name(fields, named):
    with pytest.raises(msgspec.ValidationError, match=named):
        decode(Acquire, **fields)


@pytest.mark.parametrize("number", ["123456789012345678901234567890", "-9223372036854775809"])
def test_an_integer_beyond_64_bits_is_refused(number):
    with pytest.raises(msgspec.ValidationError, match="meta"):
        msgspec.json.decode(f'{{"op": "locks.acquire", "key": "k", "client": "a", "meta": {{"n": {number}}}}}', type=Acquire)


@pytest.mark.parametrize("type_", [Release, Renew])
def test_release_and_renew_name_their_keys_in_the_same_way(type_):
    assert decode(type_, keys=["k1", "k2"], client="a").key is None
    with pytest.raises(msgspec.ValidationError, match="`key`"):
        decode(type_, client="a")


def test_a_forced_release_needs_a_reason():
    with pytest.raises(msgspec.ValidationError, match="reason"):
        decode(ForceRelease, key="k")
    with pytest.raises(msgspec.ValidationError, match="reason"):
        decode(ForceRelease, key="k", reason="")


@pytest.mark.parametrize(
    "command",
    [
        Acquire(keys=["k1", "k2"], client="a", mode="shared", wait_ms=5, meta={"pid": 1}),
        Release(key="k", client="a", fencing_token=7),
        Renew(key="k", client="a", ttl_ms=0),
        ForceRelease(key="k", reason="why", by="alice"),
    ],
)
def test_a_command_survives_encoding(command):
    types = Acquire | Release | Renew | ForceRelease
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(command), type=types) == command
