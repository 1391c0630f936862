"""Checking and hashing passwords, which is slow on purpose: outside the event loop, few at a time, and after everything else.

Hashing takes a third of a second of one core. One thread does it, with a lower priority than the node's others, and a short queue waits
for it; what does not fit is refused. So a flood of logins costs other callers little, and at most one core.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import TypeVar

from django.contrib.auth.hashers import check_password, make_password
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError

from dss_api.errors import Refused
from dss_raft.user_operations import PASSWORD_LENGTH_MAX

T = TypeVar("T")

#: Passwords that are hashed or wait for it.
HASHES_MAX = 8
#: of these, those that only logins get: a user who is logged in and changes passwords all the time keeps no one out
FOR_LOGINS = 2
#: added to the priority of the thread, as by `nice`
NICENESS = 10


class Hashing:
    """See the module."""

    def __init__(self, hashes_max: int = HASHES_MAX) -> None:
        self._threads = ThreadPoolExecutor(1, "passwords", _lower_priority)
        self._room = threading.Semaphore(hashes_max)
        self._room_of_others = threading.Semaphore(max(0, hashes_max - FOR_LOGINS))

    def is_right(self, password: str, password_hash: str, is_login: bool = False) -> bool:
        """Whether this is the password. Waits; call it in the thread of a page.

        Args:
            password_hash: "" for a user who does not exist: takes as long, and is False.
            is_login: it may take a place that is kept for logins.

        Raises:
            Refused: `overloaded`.
        """
        return self._run(lambda: _is_right(password, password_hash), is_login).result()

    async def hash_new(self, password: str, user_name: str) -> str:
        """See `Passwords`."""
        return await asyncio.wrap_future(self._run(lambda: _hash_new(password, user_name)))

    async def hash_given(self, password: str) -> str:
        """The hash of a password that an operator has set, however weak.

        Raises:
            Refused: `overloaded`.
        """
        return await asyncio.wrap_future(self._run(lambda: make_password(password)))

    async def is_right_soon(self, password: str, password_hash: str) -> bool:
        """`is_right`, for the event loop."""
        return await asyncio.wrap_future(self._run(lambda: _is_right(password, password_hash)))

    def _run(self, work: Callable[[], T], is_login: bool = False) -> Future[T]:
        rooms = [self._room] if is_login else [self._room_of_others, self._room]
        for place, room in enumerate(rooms):
            if not room.acquire(blocking=False):
                _leave(rooms[:place])
                raise Refused("overloaded", "this node is checking other passwords; try again in a few seconds")
        future = self._threads.submit(work)
        future.add_done_callback(lambda done: _leave(rooms))
        return future


def _leave(rooms: list[threading.Semaphore]) -> None:
    for room in rooms:
        room.release()


def _is_right(password: str, password_hash: str) -> bool:
    if len(password) > PASSWORD_LENGTH_MAX:
        return False
    return check_password(password, password_hash or _nobodys_hash()) and bool(password_hash)


def _hash_new(password: str, user_name: str) -> str:
    try:
        validate_password(password)
    except ValidationError as error:
        raise Refused("invalid", f"`password`: {' '.join(error.messages)}", field="password") from None
    if password.lower() == user_name.lower():
        raise Refused("invalid", "`password`: it must not be the name", field="password")
    return make_password(password)


@cache
def _nobodys_hash() -> str:
    return make_password("nobody")


def _lower_priority() -> None:
    # Linux only: elsewhere, a thread has no priority of its own.
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@cache
def hashing() -> Hashing:
    """The one of this process."""
    return Hashing()
