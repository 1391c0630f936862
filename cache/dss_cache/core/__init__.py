"""The directory and the node's side of coherence: deterministic, without I/O."""
