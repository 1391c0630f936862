"""The Django parts of the queue: the admin and the management commands."""
