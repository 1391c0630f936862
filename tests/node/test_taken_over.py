"""A connection that a web server has taken over may be lost at any moment. Calls to it have no effect then."""

from __future__ import annotations

import subprocess
import sys

import pytest

CLIENT = """
from dss_api.client_memory import ClientMemory
from dss_api.http_listener import Client
from dss_api.turns import InputTurns
client = Client("127.0.0.1", ClientMemory().open(lambda: None), InputTurns())
"""
#: what the transports of the servers are like after the connection was lost
LOST = {
    "uvicorn": """
from types import SimpleNamespace
from dss_project.server.on_uvicorn import TakenOver
connection = TakenOver(SimpleNamespace(abort=int, get_protocol=lambda: None, is_closing=lambda: True, get_write_buffer_size=int), client)
""",
    "daphne": """
from types import SimpleNamespace
from dss_project.server.on_daphne import TakenOver
# Twisted deletes `protocol`.
transport = SimpleNamespace(abortConnection=int, connected=0, dataBuffer=b'', offset=0, _tempDataLen=0)
connection = TakenOver(transport, client)
""",
}


@pytest.mark.parametrize("server", LOST)
def test_a_lost_connection_can_be_called(server: str) -> None:
    """In a process of its own: the import of Daphne creates Twisted's reactor."""
    names = ["open_websocket()", "recount()", "take_input(b'x')", "resume_input()", "abort()"]
    calls = "\n".join(f"connection.{name}" for name in names)
    subprocess.run([sys.executable, "-c", CLIENT + LOST[server] + calls], check=True, timeout=60)
