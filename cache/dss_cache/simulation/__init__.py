"""A cluster's caches without I/O: the real directory, lines, leases and near caches on an adversary's network, clock and log.

Every method of `Simulation` is one step of the adversary; a step that makes no sense at the moment does nothing. Any order of steps
must keep the promise, which is checked at every answered read (`StaleRead`) against everything that was answered before the read
began.

Raft is taken as given: there is one log, an entry is committed or lost with its leader, and each node applies the log at its own
speed. `Flaws` are mistakes one could make; the tests show that each of them is found.
"""

from dss_cache.simulation.adversary import Adversary
from dss_cache.simulation.cluster import Simulation
from dss_cache.simulation.parts import KEYS, Flaws, StaleRead

__all__ = ["KEYS", "Adversary", "Flaws", "Simulation", "StaleRead"]
