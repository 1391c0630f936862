"""Repeats tests of faults, each time with the faults at other moments: `TEST_ROUNDS=10` (`make rounds`)."""

from __future__ import annotations

import os
import random
import time

ROUNDS = int(os.environ.get("TEST_ROUNDS", "1"))
#: longest pause before a node is stopped, killed or paused
MOMENT_S_MAX = 0.5


def wait_for_a_moment() -> None:
    """Pause for a random time, so that the next fault happens at another moment in each round."""
    if ROUNDS > 1:
        time.sleep(random.uniform(0, MOMENT_S_MAX))
