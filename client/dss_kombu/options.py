"""The options of the transport, from the URL and from `transport_options`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import msgspec

from dss_client.dss_url import CONNECTING, DssUrl, seconds
from dss_client.errors import WrongUse

#: The priorities 0 to 9 share these levels, each with a topic of its own.
PRIORITY_STEPS = (0, 3, 6, 9)
VISIBILITY_S_MAX = 12 * 3600
PREFIX_DEFAULT = "kombu"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    #: what the names of topics and cache keys begin with; the URL's path, the virtual host, follows it
    prefix: str = PREFIX_DEFAULT
    #: messages come back this many seconds after their consumer was killed; they are extended as long as it lives
    visibility_timeout: float = 30.0
    #: how long messages wait for temporary queues that are bound to a fanout or topic exchange
    fanout_retention: float = 300.0

    @classmethod
    def read(cls, url: DssUrl, given: Mapping[str, Any]) -> Options:
        """
        Raises:
            WrongUse: an option has an invalid value, or the URL has an unknown option.
        """
        known = cls.__struct_fields__
        for name in url.options:
            if name not in known and name not in CONNECTING:
                raise WrongUse(f"the URL has an unknown option: {name!r}")
        found: dict[str, Any] = {name: value for name, value in {**url.options, **given}.items() if name in known}
        for name in ("visibility_timeout", "fanout_retention"):
            if name in found:
                found[name] = seconds(name, found[name])
        if not 1 <= found.get("visibility_timeout", 1) <= VISIBILITY_S_MAX:
            raise WrongUse(f"`visibility_timeout` is from 1 to {VISIBILITY_S_MAX} seconds, not {found['visibility_timeout']!r}")
        if url.path:
            found["prefix"] = f"{found.get('prefix', PREFIX_DEFAULT)}@{url.path}"
        return cls(**found)


def step_of(priority: Any) -> int:
    """The level of a priority; a value that is not a number has the lowest."""
    try:
        number = int(priority)
    except (TypeError, ValueError):
        return PRIORITY_STEPS[0]
    return PRIORITY_STEPS[max(0, bisect_right(PRIORITY_STEPS, number) - 1)]
