"""The exceptions that are not faults of the program."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """Raised anywhere while a call is served. The entry point answers with a problem document and logs no traceback.

    Args:
        code: a stable problem code of the contract ("no_leader", "over_limit", "invalid", …).
        detail: one sentence for people; names the field that is at fault, if any.
        extra: further members of the problem document, as `problems.PROBLEMS` declares them.
    """

    def __init__(self, code: str, detail: str = "", **extra: Any) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail
        self.extra = extra


class ForOperator(Exception):
    """A condition outside the program that only an operator can change. Its text says what to do; a traceback would not help."""
