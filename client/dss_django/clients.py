"""One client for each cluster in a process, whatever the number of threads, caches and locks that use it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from dss_client import Client, WrongUse

#: the options of a client that a setting may have
OPTIONS = frozenset({"token", "name", "timeout", "transport", "traces"})

_clients: dict[tuple[Any, ...], Client] = {}
_making = threading.Lock()


def client_for(urls: str | Iterable[str] | None, options: Mapping[str, Any]) -> Client:
    """The client for these nodes. It connects with its first call.

    Args:
        urls: as for `Client`.
        options: see `OPTIONS`.

    Raises:
        ImproperlyConfigured: the URLs or options are wrong.
    """
    places = urls if urls is None or isinstance(urls, str) else tuple(urls)
    key = (places, *sorted(options.items()))
    with _making:
        client = _clients.get(key)
        if client is None:
            try:
                client = _clients[key] = Client(places or None, **options)
            except WrongUse as error:
                raise ImproperlyConfigured(str(error)) from None
        return client
