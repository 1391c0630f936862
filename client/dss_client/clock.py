"""The clock of leases: steady, and where the system offers it, it runs on while the machine is suspended."""

from __future__ import annotations

import time
from collections.abc import Callable


def _boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


#: seconds since some moment in the past
now: Callable[[], float] = _boot_time if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
