"""The address of the engine in a setting."""

from __future__ import annotations

from dss_api import redis_url
from dss_api.redis_url import RedisUrl


def parse(text: str) -> RedisUrl:
    """What the address says: one server, which may be of a Cluster, or some nodes of a Cluster.

    Raises:
        ValueError: it is none, or names a socket file or Sentinels; the text of the error has no part of it.
    """
    given = redis_url.parse(text)
    if given.kind == "sentinel" or not given.hosts:
        raise ValueError(
            "must name a server or nodes of a Cluster: redis:// or redis+cluster://, or with TLS rediss:// or rediss+cluster://"
        )
    return given


def checked(text: str) -> str:
    """The text of a setting, if it is an address of the engine; see `parse`."""
    parse(text)
    return text
