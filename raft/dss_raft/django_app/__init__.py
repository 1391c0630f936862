"""Raft in Django's admin."""
