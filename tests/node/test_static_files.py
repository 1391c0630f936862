"""CSS and scripts: they are read in large blocks."""

from __future__ import annotations

from typing import Any

from dss_console.static_files import BLOCK_BYTES, static_files


async def test_a_file_is_sent_in_few_blocks() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("a file has no request body")

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/static/admin/js/vendor/jquery/jquery.js",
        "headers": [],
        "query_string": b"",
    }
    await static_files(None)(scope, receive, send)
    start, *blocks, last = sent
    assert (start["status"], last["body"]) == (200, b"")
    length = int(dict(start["headers"])[b"content-length"])
    assert length > BLOCK_BYTES
    assert [len(block["body"]) for block in blocks] == [BLOCK_BYTES] * (length // BLOCK_BYTES) + [length % BLOCK_BYTES]
