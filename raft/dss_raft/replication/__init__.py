"""Replicated state: the state machines, the client sessions, and the path of a command to them."""
