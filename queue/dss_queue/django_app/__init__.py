"""The queue in Django: the admin and the commands."""
