"""Raft without I/O: no loop, socket, file, clock or global randomness.

Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (the paper); Ongaro, "Consensus: Bridging Theory and
Practice" (the thesis). `RaftCore` is the only entry point; `messages` and `ready` define its input and output.
"""

from dss_raft.core.core import CoreStatus, PeerStatus, RaftCore
from dss_raft.core.errors import Busy, ChangeRefused, InvariantViolation, NotLeader, QuorumAtRisk
from dss_raft.core.membership import AddLearner, Bind, Change, Promote, Remove
from dss_raft.core.state import CoreConfig, Rng, Role

__all__ = [
    "AddLearner",
    "Bind",
    "Busy",
    "Change",
    "ChangeRefused",
    "CoreConfig",
    "CoreStatus",
    "InvariantViolation",
    "NotLeader",
    "PeerStatus",
    "Promote",
    "QuorumAtRisk",
    "RaftCore",
    "Remove",
    "Rng",
    "Role",
]
