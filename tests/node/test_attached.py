"""Messages with bytes beside their JSON, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dss_api import attached
from dss_api.codec import AnswerEncoder, RequestDecoder
from dss_api.errors import Refused
from dss_api.operation import named
from dss_cache.operations import OPERATIONS

PUT = RequestDecoder(named(OPERATIONS, "cache.put"))
MPUT = RequestDecoder(named(OPERATIONS, "cache.mput"))
GET = RequestDecoder(named(OPERATIONS, "cache.get"))


def message(document: Any, *parts: bytes) -> bytes:
    return attached.message(msgspec.json.encode(document), [memoryview(part) for part in parts])


def decode(decoder: RequestDecoder, data: bytes) -> Any:
    return decoder.typed_body(b"Application/VND.dss.attached; x=1", data)


def put_of(**fields: Any) -> dict[str, Any]:
    return {"key": "k", "encoding": "attached", **fields}


def test_a_value_is_attached() -> None:
    request = decode(PUT, message(put_of(value=3, ttl_ms="5"), b"\x00\xff{"))
    assert (bytes(request.value), request.ttl_ms) == (b"\x00\x00\xff{", 5)


def test_with_a_request_id() -> None:
    document = put_of(value=1, request_id="s:1:1")
    assert bytes(decode(PUT, message(document, b"x")).request.value) == b"\x00x"


def test_several_values_in_order() -> None:
    items = [put_of(value=2), {"key": "j", "value": {"encoding": "attached", "value": 7}}, put_of(value=0), put_of(value=1)]
    request = decode(MPUT, message({"items": items}, b"ab", b"", b"c"))
    assert [bytes(item.value) for item in request.items] == [
        b"\x00ab",
        b'{"encoding":"attached","value":7}',
        b"\x00",
        b"\x00c",
    ]


@pytest.mark.parametrize(
    ("decoder", "data", "field"),
    [
        (PUT, message(put_of(value=4), b"abc"), "value"),
        (PUT, message(put_of(value=2), b"abc"), "value"),
        (PUT, message(put_of(value=-1), b"abc"), "value"),
        (PUT, message(put_of(value=10**40), b"abc"), "value"),
        (PUT, message(put_of(value=3.0), b"abc"), "value"),
        (PUT, message(put_of(value="3"), b"abc"), "value"),
        (PUT, message(put_of(value=None), b"abc"), "value"),
        (PUT, message(put_of(value=True), b"abc"), "value"),
        (PUT, message(put_of(value=[3]), b"abc"), "value"),
        (PUT, message(put_of(), b"abc"), "value"),
        (PUT, message({"key": "k", "value": 3}, b"abc"), "value"),
        (PUT, message({"key": "k", "value": 3, "encoding": "base64"}, b"abc"), "value"),
        (PUT, message(put_of(value=3, encoding="Attached"), b"abc"), "encoding"),
        (MPUT, message({"items": [put_of(value=2), put_of(value=2)]}, b"abc"), "value"),
        (PUT, message([put_of(value=3)], b"abc"), None),
        (GET, message({"key": "k"}, b"abc"), None),
        (GET, message({"key": "k"}), None),
        (PUT, b"\x00", None),
        (PUT, b"\x00\x00\x00\x00\x01", None),
        (PUT, b"\x00\xff\xff\xff\xff{}", None),
        (PUT, b"\x00\x00\x00\x00\x00", "key"),
        (PUT, b"\x00\x00\x00\x00\x04\xff\xff\xff\xff", None),
        (PUT, msgspec.json.encode(put_of(value=3)), None),
        (PUT, b"\x83\xa3key", None),
    ],
)
def test_what_is_no_such_message(decoder: RequestDecoder, data: bytes, field: str | None) -> None:
    with pytest.raises(Refused) as refusal:
        decode(decoder, data)
    assert (refusal.value.code, refusal.value.extra.get("field")) == ("invalid", field)


def test_json_has_nothing_attached() -> None:
    with pytest.raises(Refused) as refusal:
        PUT.typed_body(b"application/json", message(put_of(value=1), b"x"))
    assert refusal.value.code == "invalid"
    with pytest.raises(Refused) as refusal:
        PUT.typed_body(b"application/octet-stream", message(put_of(value=1), b"x"))
    assert refusal.value.code == "unsupported_media_type"


def test_an_answer_has_what_its_client_accepts() -> None:
    operation = named(OPERATIONS, "cache.get")
    encoder = AnswerEncoder(operation.name, operation.answer)
    fields = {"found": True, "hit": True, "version": 1, "state": "S", "node": "n1"}
    answer = operation.answer(value=attached.Bytes(memoryview(b"\xff\x00")), encoding=attached.ENCODING, **fields)
    text, beside = encoder.encode(answer), encoder.encode(answer, attaches=True)
    shown = msgspec.json.decode(text.payload)
    assert (shown["value"], shown["encoding"], text.parts) == ("/wA=", "base64", ())
    document, parts = attached.split(beside.payload)
    shown = msgspec.json.decode(document)
    assert (shown["value"], shown["encoding"], parts.take(b"2"), parts.left) == (2, "attached", b"\xff\x00", 0)
    assert dict(beside.headers)[b"content-type"] == attached.MEDIA_TYPE
    plain = operation.answer(value=msgspec.Raw(b"1"), **fields)
    assert encoder.encode(plain, attaches=True).payload == encoder.encode(plain).payload
