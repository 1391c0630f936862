"""Values are JSON that other programs wrote, with numbers that Python's floats and integers do not have."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from websockets.sync.client import connect

from dss_client import Client
from dss_client.connection import decode
from dss_dev.local_cluster import HOST, LocalCluster

DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1E400", math.inf),
        ("-1e309", -math.inf),
        (DIGITS, math.inf),
        ("1e308", 1e308),
        ("9" * 400, int("9" * 400)),
        ("1e-400", 0.0),
    ],
)
def test_every_number_of_json_is_read(text: str, expected: float) -> None:
    assert decode(b'{"value":{"n":[%b]}}' % text.encode()) == {"value": {"n": [expected]}}


@pytest.mark.parametrize("text", [b"[1E400]", b'{"value":1E400', b"1E400", b"[1]", b"nonsense"])
def test_what_is_no_answer_stays_wrong(text: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode(text)


@pytest.mark.cluster
def test_a_node_carries_the_text_and_the_client_reads_it(real_node: LocalCluster, token: str) -> None:
    """On both entry points, and for a consumer: one such message must not end the connection of each consumer that gets it."""
    node = real_node.nodes[0]
    headers = {"Authorization": f"Bearer {token}"}
    body = b'{"key":"huge","value":{"n":1E400,"i":%b}}' % DIGITS.encode()
    assert node.call("POST", "/cache/put", body, headers={**headers, "Content-Type": "application/json"}).status == 200
    assert b'"value":{"n":1E400,"i":999' in node.call("GET", "/cache/get?key=huge", headers=headers).body
    with connect(f"ws://{HOST}:{node.port}/ws", additional_headers=headers) as websocket:
        websocket.send('{"id": 1, "op": "queue.publish", "request": {"topic": "huge", "value": -1E400}}')
        assert '"status":200' in websocket.recv(timeout=60)
    expected: Any = {"n": math.inf, "i": math.inf}
    for transport in ("websocket", "http"):
        with Client(node.url, token, transport=transport) as dss:
            assert dss.cache.get("huge") == expected
    with Client(node.url, token) as dss:
        (message,) = dss.topic("huge").consume("readers", wait=5)
        assert message.value == -math.inf
