"""Raft: the replicated log on which locks, queue and cache are built."""
