"""The distributed queue."""
