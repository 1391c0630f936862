"""Replicated state: state machines, sessions, and the commands on their way to them."""
