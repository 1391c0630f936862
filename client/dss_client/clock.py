"""The clock of leases: steady, and where the system offers it, it runs on while the machine is suspended."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable


def _clock() -> Callable[[], float]:
    if hasattr(time, "CLOCK_BOOTTIME"):
        return functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        # There, it counts the time of a suspension; `time.monotonic` does not.
        return functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    return time.monotonic


#: seconds since some moment in the past
now: Callable[[], float] = _clock()
