"""The distributed lock manager."""
