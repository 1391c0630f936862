"""Clients with request sessions in the simulated world. They repeat their requests at other nodes until they have an answer.

A client repeats what has no answer, and sometimes what has one. Its numbers arrive in any order. It says how far it has the answers,
and closes its session now and then; late repeats arrive after that, too. The checker knows where each request was carried out.

The dice are their own, so a world without such clients is as it was without this module.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

from sim_sessions import FIRST_REQUEST, Add

from dss_api.errors import Refused
from dss_api.request_id import DIGEST_BYTES, RequestId
from dss_api.result import Result
from dss_raft.replication.client_requests import CloseRequestSession, OpenRequestSession
from dss_raft.replication.commands import Command

if TYPE_CHECKING:
    from sim_node import SimNode

CLIENTS = 2
#: numbers that arrive in any order
WINDOW = 6
#: requests that a client may still repeat
REMEMBERED = 40


class Request:
    """A request, also after its session."""

    def __init__(self, session: str, number: int, value: int) -> None:
        self.session = session
        self.number = number
        self.value = value
        self.is_answered = False


class Client:
    """One client. It has one session at a time."""

    def __init__(self, dice: Random, happened: Counter[str]) -> None:
        self._dice = dice
        self._happened = happened
        self.session = ""
        self._numbers: list[int] = []
        self._last_number = 0
        #: of this session: up to this number, it has all answers
        self._answered = 0
        self._answers: dict[int, None] = {}
        self._requests: list[Request] = []

    def act(self, node: SimNode) -> bytes | None:
        """What it does next, as a group for `node`."""
        if not self.session:
            return self._open(node)
        roll, open_requests = self._dice.random(), [one for one in self._requests if not one.is_answered]
        if roll < 0.02:
            session, self.session = self.session, ""
            return self._submit(node, CloseRequestSession(session=session))
        if roll < 0.5 and open_requests:
            return self._send(node, self._dice.choice(open_requests))
        if roll < 0.65 and self._requests:
            return self._send(node, self._dice.choice(self._requests))
        return self._send(node, self._new_request())

    def _open(self, node: SimNode) -> bytes | None:
        session = f"{self._dice.getrandbits(64):x}"

        def opened(result: Result) -> None:
            if not result.code and not self.session:
                self.session = session
                self._numbers, self._last_number, self._answered, self._answers = [], 0, 0, {}

        return self._submit(node, OpenRequestSession(session=session, ttl_ms=1000), opened)

    def _new_request(self) -> Request:
        if not self._numbers:
            self._numbers = list(range(self._last_number + 1, self._last_number + WINDOW + 1))
            self._last_number += WINDOW
            self._dice.shuffle(self._numbers)
        request = Request(self.session, self._numbers.pop(), FIRST_REQUEST + self._dice.getrandbits(50))
        self._requests = [*self._requests[-REMEMBERED:], request]
        return request

    def _send(self, node: SimNode, request: Request) -> bytes | None:
        check = node.sessions_of
        assert check is not None

        def answered(result: Result) -> None:
            if request.is_answered:
                self._happened["request repeated"] += 1
            if result.code:
                self._happened["request expired"] += 1
                check.request_refused(request.value, result)
            else:
                check.request_answered(request.value, result)
            request.is_answered = True
            if request.session == self.session:
                self._answers[request.number] = None
                while self._answered + 1 in self._answers:
                    self._answered += 1

        is_current = request.session == self.session and self._dice.random() < 0.7
        digest = request.value.to_bytes(DIGEST_BYTES, "big")
        once = RequestId(request.session, request.number, self._answered if is_current else 0, digest)
        return self._submit(node, Add(value=request.value), answered, once)

    @staticmethod
    def _submit(node: SimNode, command: Command, answered: object = None, once: RequestId | None = None) -> bytes | None:
        sessions = node.sessions
        assert sessions is not None
        try:
            encoded = sessions.admission.encode(command) if once is None else sessions.admission.encode_once(command, once)
        except Refused:
            return None  # the cluster does not have the version yet
        return sessions.submit_apart(encoded, answered)


class Clients:
    """The clients of one world; in most worlds, none."""

    def __init__(self, seed: int, has_sessions: bool, happened: Counter[str]) -> None:
        self._dice = Random(f"requests {seed}")
        self.are_there = has_sessions and self._dice.random() < 0.4
        self._clients = [Client(self._dice, happened) for _ in range(CLIENTS)]

    def groups(self, node: SimNode) -> list[bytes]:
        """What clients send to this node now."""
        if not self.are_there:
            return []
        found = (self._dice.choice(self._clients).act(node) for _ in range(self._dice.randint(1, 3)))
        return [group for group in found if group is not None]
