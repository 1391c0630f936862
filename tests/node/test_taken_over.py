"""A connection that a web server has taken over may be lost at any moment. Calls to it have no effect then."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: what the transports of the servers are like after the connection was lost
LOST = {
    "uvicorn": """
from types import SimpleNamespace
from dss_project.server.on_uvicorn import TakenOver
connection = TakenOver(SimpleNamespace(abort=lambda: None, get_protocol=lambda: None))
""",
    "daphne": """
from types import SimpleNamespace
from dss_project.server.on_daphne import TakenOver
connection = TakenOver(SimpleNamespace(abortConnection=lambda: None))  # Twisted deletes `protocol`
""",
}


@pytest.mark.parametrize("server", LOST)
def test_a_lost_connection_can_be_called(server: str) -> None:
    """In a process of its own: the import of Daphne creates Twisted's reactor."""
    calls = "connection.watch(print); connection.ping(); connection.abort()"
    subprocess.run([sys.executable, "-c", LOST[server] + calls], check=True, timeout=60)
