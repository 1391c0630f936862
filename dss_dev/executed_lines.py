"""What a call costs, in a measure that is the same on every machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def lines_run(act: Callable[[], Any]) -> int:
    """The number of lines of Python that the call executes. Lines in a loop count in each iteration."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count
