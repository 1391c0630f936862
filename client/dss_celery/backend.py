"""Results of tasks, as values in the cluster's cache that expire after `result_expires`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from celery import states
from celery.exceptions import BackendStoreError, ImproperlyConfigured, TimeoutError

from dss_celery.chords import Chords
from dss_client import Client
from dss_client.clock import now
from dss_client.dss_url import CONNECTING, DssUrl
from dss_client.errors import TooLarge, Unavailable, UnknownOutcome, WrongUse

PREFIX_DEFAULT = "celery"
#: how long to wait before a result is asked for again: at first, and at most
ASK_S_MIN, ASK_S_MAX = 0.005, 0.25
#: the same for many results, which are asked for in one call
ASK_MANY_S = 0.1
#: keys in one call
MGET_MAX = 500

#: The backends of all threads share one client for each cluster.
_clients: dict[tuple[Any, ...], Client] = {}
_making = threading.Lock()


def _after_fork() -> None:
    # Another thread of the parent may have held it. The clients take care of themselves.
    global _making
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class DssBackend(Chords):
    """See docs/how-to/celery.md."""

    supports_autoexpire = True
    supports_native_join = True
    persistent = True
    key_t = str

    def __init__(self, app: Any, url: str | None = None, **options: Any) -> None:
        self.url = url or "dss://"
        given = app.conf.get("result_backend_transport_options") or {}
        try:
            address = DssUrl.parse(self.url)
            for name in address.options:
                if name not in CONNECTING and name != "prefix":
                    raise WrongUse(f"the URL has an unknown option: {name!r}")
            self._client_options = address.client_options({name: given[name] for name in CONNECTING if name in given})
        except WrongUse as error:
            raise ImproperlyConfigured(f"result_backend: {error}") from None
        prefix = given.get("prefix") or address.options.get("prefix") or PREFIX_DEFAULT
        self._prefix = f"{prefix}@{address.path}/" if address.path else f"{prefix}/"
        super().__init__(app=app, url=self.url, **options)

    @property
    def client(self) -> Client:
        identity = tuple(sorted((name, str(value)) for name, value in self._client_options.items()))
        with _making:
            if identity not in _clients:
                _clients[identity] = Client(**self._client_options)
            return _clients[identity]

    def as_uri(self, include_password: bool = False) -> str:
        return self.url if include_password else DssUrl.parse(self.url).without_token()

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, Unavailable | UnknownOutcome)

    # ------------------------------------------------------------ values

    def get(self, key: str) -> Any:
        return self.client.cache.get(self._prefix + key)

    def mget(self, keys: Iterable[str]) -> list[Any]:
        names = [self._prefix + key for key in keys]
        found: dict[str, Any] = {}
        for start in range(0, len(names), MGET_MAX):
            found |= self.client.cache.mget(names[start : start + MGET_MAX])
        return [found.get(name) for name in names]

    def set(self, key: str, value: str | bytes) -> None:
        try:
            self.client.cache.put(self._prefix + key, value, self.expires or None)
        except TooLarge as error:
            raise BackendStoreError(f"the result is too large for the cache: {error}") from None

    def delete(self, key: str) -> None:
        self.client.cache.delete(self._prefix + key)

    def expire(self, key: str, value: float) -> None:
        self.client.cache.touch(self._prefix + key, value or None)

    # ------------------------------------------------------------ waiting

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """Wait for a result: often at first, and then less often, whatever `interval` is.

        Raises:
            TimeoutError
        """
        self._ensure_not_eager()
        until = None if timeout is None else now() + timeout
        pause_s = ASK_S_MIN
        while True:
            meta: dict[str, Any] = self.get_task_meta(task_id)
            if meta["status"] in states.READY_STATES:
                return meta
            if on_interval is not None:
                on_interval()
            left_s = pause_s if until is None else until - now()
            if left_s <= 0:
                raise TimeoutError("The operation timed out.")
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, ASK_S_MAX)

    def get_many(
        self, task_ids: Iterable[str], timeout: float | None = None, interval: float | None = None, **options: Any
    ) -> Iterator[Any]:
        yield from super().get_many(task_ids, timeout=timeout, interval=min(interval or ASK_MANY_S, ASK_MANY_S), **options)
