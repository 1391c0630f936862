"""Makes `dss://` known to kombu as soon as kombu is imported."""

from __future__ import annotations

from typing import Any

import msgspec
from kombu.transport import TRANSPORT_ALIASES

TRANSPORT_ALIASES.setdefault("dss", "dss_kombu.transport:Transport")


def dumps(value: Any) -> str:
    """JSON as the client library writes it: dates as text, bytes as base64."""
    return msgspec.json.encode(value).decode()


#: what `kombu.serialization.register` wants: how to write and to read, the content type and the encoding
serializer = (dumps, msgspec.json.decode, "application/x-dss-json", "utf-8")
