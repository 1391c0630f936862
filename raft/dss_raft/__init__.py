"""Raft: the replicated log under locks, queue and cache."""
