"""An open node under another server than `manage.py node`: who may call without a token."""

from __future__ import annotations

from typing import Any

import pytest

from dss_api.guard import Guard
from dss_project.local_clients import LocalClients


class Entry:
    """Notes what reaches the entry points."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope["type"])


async def outcome(
    application: LocalClients, entry: Entry, kind: str = "http", client: tuple[str, int] | None = ("192.0.2.7", 1)
) -> Any:
    """ "reached", a status, or the code with which a WebSocket is closed."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    entry.reached.clear()
    await application({"type": kind, "method": "GET", "path": "/", "client": client}, receive, send)
    return "reached" if entry.reached else sent[0].get("status") or sent[0]["code"]


@pytest.fixture
def entry() -> Entry:
    return Entry()


@pytest.mark.parametrize(
    ("client", "expected"),
    [(("127.0.0.1", 1), "reached"), (("::1", 1), "reached"), (("192.0.2.7", 1), 401), (None, 401)],
)
async def test_under_another_server_the_address_decides(entry: Entry, client: Any, expected: Any) -> None:
    application = LocalClients(entry, Guard(), is_open_to_all=False)
    await application({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert await outcome(application, entry, client=client) == expected
    assert await outcome(application, entry, "websocket", client) == {401: 4401}.get(expected, expected)


async def test_dss_open_and_tokens_let_others_in(entry: Entry) -> None:
    for guard, is_open in ((Guard(), True), (Guard("secret"), False)):
        application = LocalClients(entry, guard, is_open)
        await application({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
        assert await outcome(application, entry) == "reached", "the guard checks the token"


async def test_manage_py_node_listens_where_rpc_host_says(entry: Entry) -> None:
    application = LocalClients(entry, Guard(), is_open_to_all=False)
    assert await outcome(application, entry) == "reached"
    assert await outcome(application, entry, "channel", None) == "reached"
