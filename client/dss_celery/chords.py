"""Chords: when all tasks of a header have ended, the body gets their results.

Each task that ends takes a slot, stores its result in it and counts up. The task that makes the count reach the size of the chord looks at
all slots. A task that ran twice has two slots, and counts once: results are told apart by the ids of their tasks. So the count may be too
high, but never too low, and the last task finds all results.

The task that is to publish the body takes a lease first, so that no other one does so at the same time. If its worker is killed before
the body is published, the task comes again with `acks_late`, waits for the end of the lease and publishes the body. So the body is not
lost. It is published twice if the worker is killed between publishing and storing that it is done, or if publishing takes longer than the
lease.
"""

from __future__ import annotations

import time
from typing import Any

from celery import states
from celery.backends.base import KeyValueStoreBackend
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult, allow_join_result
from celery.utils.functional import _regen
from celery.utils.log import get_logger

from dss_client import Client
from dss_client.errors import Exists

logger = get_logger(__name__)

#: for how long a published body is remembered
DONE_S = 300.0
#: for how long no other task publishes a body that one has begun to publish
LEASE_S = 10.0
#: how often a task that finds a lease looks whether the body was published
ASK_S = 0.25
LEASED, DONE = "leased", True
#: the place of tasks that have none in their group: they come last
LAST = 2**53
MGET_MAX = 500


class Chords(KeyValueStoreBackend):
    """The part of the backend that knows chords."""

    _prefix: str

    @property
    def client(self) -> Client:
        raise NotImplementedError

    def _chord_key(self, group_id: str, name: str) -> str:
        key: str = self._prefix + self.get_key_for_group(group_id, f".{name}")
        return key

    @property
    def _chord_ttl(self) -> float | None:
        return getattr(self, "chord_expires", self.expires) or None

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        # A chord that is applied again has the same group.
        self.client.cache.delete(self._chord_key(group_id, "done"))
        self.client.cache.put(self._chord_key(group_id, "size"), chord_size, self._chord_ttl)

    def add_to_chord(self, group_id: str, result: Any) -> None:
        """One more task than was known at first."""
        self.client.cache.incr(self._chord_key(group_id, "added"), ttl=self._chord_ttl)

    def apply_chord(self, header_result_args: Any, body: Any, **options: Any) -> None:
        """Keep the structure of a header with groups in it."""
        if isinstance(header_result_args[1], _regen):
            return
        header = self.app.GroupResult(*header_result_args)
        if any(isinstance(result, GroupResult) for result in header.results):
            header.save(backend=self)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **options: Any) -> None:
        task_id, group_id = request.id, request.group
        if not group_id or not task_id:
            return
        cache, ttl = self.client.cache, self._chord_ttl
        index = getattr(request, "group_index", None)
        part = self.encode([LAST if index is None else index, task_id, state, self.encode_result(result, state)])
        slot = cache.incr(self._chord_key(group_id, "slots"), ttl=ttl)
        cache.put(self._chord_key(group_id, f"slot.{slot}"), part, ttl)
        count = cache.incr(self._chord_key(group_id, "count"), ttl=ttl)
        total = self._chord_size(group_id)
        if total is None or count < total:
            return
        parts, keys = self._parts(group_id)
        if len(parts) < total or not self._may_publish(group_id):
            return
        self._publish_body(request, group_id, parts)
        cache.put(self._chord_key(group_id, "done"), DONE, DONE_S)
        cache.mdelete([*keys, *(self._chord_key(group_id, name) for name in ("slots", "count", "size", "added"))])

    def _chord_size(self, group_id: str) -> int | None:
        """None: it is not known yet, or the body was published."""
        keys = [self._chord_key(group_id, name) for name in ("size", "added")]
        found = self.client.cache.mget(keys)
        return found[keys[0]] + found.get(keys[1], 0) if keys[0] in found else None

    def _parts(self, group_id: str) -> tuple[list[Any], list[str]]:
        """The results in order, one for each task, and the keys of all slots."""
        slots = self.client.cache.get(self._chord_key(group_id, "slots"), 0)
        keys = [self._chord_key(group_id, f"slot.{slot}") for slot in range(1, slots + 1)]
        parts: dict[str, Any] = {}
        for start in range(0, len(keys), MGET_MAX):
            found = self.client.cache.mget(keys[start : start + MGET_MAX])
            for key in keys[start : start + MGET_MAX]:
                if key in found:
                    part = self.decode(found[key])
                    parts.setdefault(part[1], part)
        return sorted(parts.values(), key=lambda part: part[0]), keys

    def _may_publish(self, group_id: str) -> bool:
        """Take the lease. While another task has it, wait. False: the body was published."""
        key = self._chord_key(group_id, "done")
        while True:
            try:
                self.client.cache.add(key, LEASED, LEASE_S)
            except Exists:
                if self.client.cache.get(key) == DONE:
                    return False
                time.sleep(ASK_S)
            else:
                return True

    def _publish_body(self, request: Any, group_id: str, parts: list[Any]) -> None:
        body = maybe_signature(request.chord, app=self.app)
        try:
            results = self._results(group_id, parts)
        except Exception as error:
            logger.exception("Chord %r raised: %r", group_id, error)
            if not isinstance(error, ChordError):
                error = ChordError(f"Join error: {error!r}")
            self.chord_error_from_stack(body, error)
            return
        try:
            body.delay(results)
        except Exception as error:
            logger.exception("Chord %r raised: %r", group_id, error)
            self.chord_error_from_stack(body, ChordError(f"Callback error: {error!r}"))

    def _results(self, group_id: str, parts: list[Any]) -> list[Any]:
        header = GroupResult.restore(group_id, backend=self)
        if header is not None:
            # It has groups in it. All its tasks have ended, so this does not wait.
            header.on_ready()
            with allow_join_result():
                results: list[Any] = header.join_native(timeout=self.app.conf.result_chord_join_timeout, propagate=True)
            return results
        return [self._result(part) for part in parts]

    def _result(self, part: Any) -> Any:
        _, task_id, state, result = part
        if state in states.EXCEPTION_STATES:
            result = self.exception_to_python(result)
        if state in states.PROPAGATE_STATES:
            error = ChordError(f"Dependency {task_id} raised {result!r}")
            error.__cause__ = result if isinstance(result, BaseException) else None
            raise error
        return result
