"""The broker: a deterministic state machine without I/O."""
