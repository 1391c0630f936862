"""Settings from environment variables: how a field declares its variable, and readers that check the text.

Each package declares its settings as fields of a dataclass; the assembly joins them and reads the environment. A reader returns the
value, or raises ValueError and says what is wrong with the text.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

Reader = Callable[[str], Any]

PORT_MAX = 65_535
HOUR_MS = 3_600_000

_TRUE = frozenset(("1", "true", "yes", "on"))
_FALSE = frozenset(("0", "false", "no", "off"))


def raw(environ: Mapping[str, str], name: str) -> str | None:
    """The variable's text; None when it is unset or empty (Compose passes unset variables as empty ones).

    A secret may be in a file instead, which `NAME_FILE` names.

    Raises:
        ValueError: both are given, or the file cannot be read.
    """
    text = environ.get(name, "").strip()
    file = environ.get(f"{name}_FILE", "").strip()
    if not file:
        return text or None
    if text:
        raise ValueError(f"is set twice: here and as {name}_FILE")
    try:
        return Path(file).read_text().strip() or None
    except OSError as error:
        raise ValueError(f"cannot read the file that {name}_FILE names: {error.strerror}: {file}") from None


def text(value: str) -> str:
    return value


def setting(variable: str, default: Any, meaning: str, read: Reader = text, shown: str | None = None) -> Any:
    """A dataclass field that is read from `variable`. `shown` describes a default that is computed."""
    return field(default=default, metadata={"variable": variable, "meaning": meaning, "read": read, "shown": shown})


def boolean(value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise ValueError(f"must be true or false, not {value!r}")


def integer(minimum: int, maximum: int) -> Reader:
    def read(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"must be a whole number, not {value!r}") from None
        if not minimum <= number <= maximum:
            raise ValueError(f"must be from {minimum} to {maximum}, not {number}")
        return number

    return read


port = integer(1, PORT_MAX)


def one_of(*choices: str) -> Reader:
    def read(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {value!r}")
        return value.lower()

    return read


def comma_separated(value: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in value.split(",")) if part)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`. False for every name except localhost: a name may mean any machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """True for 0.0.0.0 and ::, which mean every interface, not a particular machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False
