"""The events of `cache.near`, field by field."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from dss_api.answer import Part


class NearOpened(Part):
    node: str
    #: the longest lease that is granted
    lease_ms: int
    #: keys that the client may hold
    keys_max: int


class NearItem(Part):
    """One key of a fetch."""

    key: str
    #: any JSON; null if the key has no value
    value: msgspec.Raw
    found: bool
    version: int
    #: true: the client may keep the value until a `drop` names the key; false: it may use the value once
    install: bool
    #: "base64" or "attached": the value is bytes; absent: `value` is the value. See `attached`
    encoding: str | UnsetType = UNSET


class NearEvent(Part):
    """One of: `opened`; `seq` with `drop` or `flush`; `token` with `lease_ms`, `fetched` or `problem`."""

    #: the first event
    opened: NearOpened | UnsetType = UNSET
    #: number of a drop or flush, from 1; the client confirms it when it has carried it out
    seq: int | UnsetType = UNSET
    #: keys whose values must not be used from now on
    drop: list[str] | UnsetType = UNSET
    #: true: all values must not be used from now on
    flush: bool | UnsetType = UNSET
    #: of the message that this answers
    token: int | UnsetType = UNSET
    #: a lease of this length, counted from when the client asked
    lease_ms: int | UnsetType = UNSET
    #: one for each key, in order
    fetched: list[NearItem] | UnsetType = UNSET
    #: why there is no lease, or no values: a problem as of a call
    problem: dict[str, Any] | UnsetType = UNSET
