"""The cache in Django: the admin, the embedded backing store and the commands."""
