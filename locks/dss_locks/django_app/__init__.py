"""Locks in Django: the admin, and models that refuse writes under an old lock."""
