"""The lock table: a deterministic state machine without I/O."""
