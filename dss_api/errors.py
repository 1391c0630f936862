"""The one exception that becomes an answer."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """Raised on a request's way to be answered as a problem; it costs no traceback.

    Args:
        code: a stable problem code of the contract ("no_leader", "over_limit", "invalid", …).
        detail: one sentence for a person; names the field when one is at fault.
        extra: further members of the problem document.
    """

    def __init__(self, code: str, detail: str = "", **extra: Any) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail
        self.extra = extra
