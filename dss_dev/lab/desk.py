"""What the lab asks the process of `make run` to do with nodes.

The main thread owns the processes: it starts them, waits for them and prints their logs. Other threads ask here, by the name of a node.
No caller gives a process id: a signal goes only to a process that was started here.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Literal

from dss_dev.local_cluster import LocalNode

Action = Literal["kill", "pause", "resume", "start"]
ProcessState = Literal["running", "paused", "ended"]


class Desk:
    """See the module.

    Args:
        started: called with each node that was started.
    """

    def __init__(self, nodes: Sequence[LocalNode], started: Callable[[LocalNode], None] = lambda node: None) -> None:
        self._nodes = nodes
        self._started = started
        # Not a `SimpleQueue`: in Python 3.11 its `get` never ends if a signal is handled for longer than what is left of the timeout.
        self._asked: queue.Queue[tuple[Action, str, Future[None]]] = queue.Queue()
        self._paused: set[str] = set()
        #: id of each node -> what its process does; replaced as a whole, so that any thread can read it
        self.states: dict[str, ProcessState] = {}

    def ask(self, action: Action, node_id: str) -> Future[None]:
        """From any thread. The future is done when the main thread has done it; `KeyError`: there is no such node."""
        future: Future[None] = Future()
        self._asked.put((action, node_id, future))
        return future

    def carry_out(self, timeout_s: float) -> None:
        """In the main thread: do what is asked within this time, and look at the processes."""
        try:
            action, node_id, future = self._asked.get(timeout=timeout_s)
        except queue.Empty:
            self.look()
            return
        try:
            self._do(action, self._find(node_id))
        except Exception as error:
            self.look()
            future.set_exception(error)
        else:
            self.look()
            future.set_result(None)

    def look(self) -> None:
        self._paused = {node.id for node in self._nodes if node.id in self._paused and node.is_running}
        self.states = {
            node.id: "ended" if not node.is_running else "paused" if node.id in self._paused else "running"
            for node in list(self._nodes)
        }

    def _find(self, node_id: str) -> LocalNode:
        found = next((node for node in self._nodes if node.id == node_id), None)
        if found is None:
            raise KeyError(node_id)
        return found

    def _do(self, action: Action, node: LocalNode) -> None:
        if action == "start":
            if not node.is_running:
                node.start()
                self._started(node)
        elif action == "kill":
            node.kill()
        elif action == "pause":
            if node.is_running:
                node.pause()
                self._paused.add(node.id)
        elif action == "resume":
            node.resume()
            self._paused.discard(node.id)
