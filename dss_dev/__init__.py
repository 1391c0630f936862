"""Development only, not part of the wheel: local clusters, network partitions, test support."""
