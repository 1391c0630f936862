"""One client for each cluster in a process, whatever the number of threads, caches and locks that use it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from dss_client import Client, NearCache, WrongUse

#: the options of a client that a setting may have
OPTIONS = frozenset({"token", "name", "timeout", "transport", "traces", "near_cache"})

_clients: dict[tuple[Any, ...], Client] = {}
_making = threading.Lock()


def client_for(urls: str | Iterable[str] | None, options: Mapping[str, Any]) -> Client:
    """The client for these nodes. It connects with its first call.

    Args:
        urls: as for `Client`.
        options: see `OPTIONS`. `near_cache` is True where WebSockets are used, unless it says otherwise, and may be a dictionary.

    Raises:
        ImproperlyConfigured: the URLs or options are wrong.
    """
    places = urls if urls is None or isinstance(urls, str) else tuple(urls)
    try:
        near = _near_cache(options)
        rest = {name: value for name, value in options.items() if name != "near_cache"}
        key = (places, near, *sorted(rest.items()))
        with _making:
            client = _clients.get(key)
            if client is None:
                client = _clients[key] = Client(places or None, **rest, near_cache=near or False)
            return client
    except WrongUse as error:
        raise ImproperlyConfigured(str(error)) from None


def _near_cache(options: Mapping[str, Any]) -> NearCache | None:
    given = options.get("near_cache", options.get("transport") != "http")
    if isinstance(given, Mapping):
        try:
            return NearCache(**given)
        except TypeError:
            raise WrongUse(f"`near_cache` has `max_items`, `max_bytes` and `lease_ms`, not {', '.join(given)}") from None
    return NearCache.read(given)
