"""What an error of a server says about the server."""

from __future__ import annotations

from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError, ResponseError

from dss_queue.redis_engine.errors import EngineAway, UnfitServer

_CLASSES: tuple[tuple[type[Exception], str], ...] = (
    (AuthenticationError, "refuses the user or the password of DSS_ENGINE_URL"),
    (NoPermissionError, "does not let the user of DSS_ENGINE_URL do what the engine needs"),
    (ReadOnlyError, "is a replica: the engine needs the address of its primary"),
)
#: By what the text of an error contains.
_TEXTS = (
    ("ACL failure in script", "does not let the user of DSS_ENGINE_URL do what the engine needs"),
    ("MISCONF", "cannot save its data, and takes no changes"),
    ("NOREPLICAS", "has fewer replicas than its `min-replicas-to-write`, and takes no changes"),
    ("CERTIFICATE_VERIFY_FAILED", "has a certificate that is not accepted"),
    ("unknown command", "lacks a command that the engine needs"),
)


def fault(address: str, error: BaseException) -> EngineAway | UnfitServer:
    """The server cannot be used until something is changed, or it is away. The text names the server, and never has a password."""
    cause = error.__cause__ if error.__cause__ is not None else error
    text = str(error)
    for kind, meaning in _CLASSES:
        if isinstance(cause, kind):
            return UnfitServer(f"{address} {meaning} ({text})")
    for mark, meaning in _TEXTS:
        if mark in text:
            return UnfitServer(f"{address} {meaning} ({text})")
    if isinstance(cause, ResponseError):
        return EngineAway(f"{address} answers: {text}")
    return EngineAway(f"{address} does not answer ({text or 'in time'})")
