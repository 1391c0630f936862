"""What answers tell browsers: what a page may load and do, where it may be shown, and to come back over HTTPS.

The headers are constants, so that they cost an answer no work. JSON answers have `NOSNIFF` from `codec`. Everything that the web server
answers (pages, files, errors of Django itself) gets the missing ones of `PAGE_HEADERS`. `Strict-Transport-Security` is for all answers
over HTTPS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Header = tuple[bytes, bytes]
Send = Callable[[dict[str, Any]], Awaitable[None]]

NOSNIFF: Header = (b"x-content-type-options", b"nosniff")

#: A page loads scripts, styles, fonts and images from this node only; `data:` images are icons in the styles of Swagger UI. Nothing
#: that stands in the HTML runs, neither as a script nor as a style. `'self'` in connect-src includes the node's WebSocket.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
#: what no page of a node needs
PERMISSIONS_POLICY = ", ".join(
    f"{feature}=()"
    for feature in (
        "accelerometer",
        "camera",
        "display-capture",
        "geolocation",
        "gyroscope",
        "magnetometer",
        "microphone",
        "midi",
        "payment",
        "publickey-credentials-get",
        "screen-wake-lock",
        "usb",
    )
)
PAGE_HEADERS: tuple[Header, ...] = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"permissions-policy", PERMISSIONS_POLICY.encode()),
    # Django compares the Referer of a form over HTTPS, so pages of this node must send it to this node.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    NOSNIFF,
)


def hsts(seconds: int) -> tuple[Header, ...]:
    """The header that tells a browser to use HTTPS only; none for 0 seconds."""
    return ((b"strict-transport-security", b"max-age=%d" % seconds),) if seconds else ()


def with_headers(send: Send, headers: tuple[Header, ...]) -> Send:
    """A `send` of ASGI that adds those of `headers` that an answer does not have."""

    async def send_with_headers(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            message = {**message, "headers": [*given, *(header for header in headers if header[0] not in names)]}
        await send(message)

    return send_with_headers
