"""The products as the pages show them, from the cache."""

from django.core.cache import cache

from store.models import Product

KEY = "catalogue"
SECONDS = 60


def catalogue():
    """One process reads them from the database; the others wait for its value (`get_or_set` with a callable)."""
    return cache.get_or_set(KEY, _read, SECONDS)


def forget():
    """The stock has changed: from now on, no process shows the older value.

    A process that has read the database just before puts the older stock back, for at most `SECONDS`. A payment asks the database.
    """
    cache.delete(KEY)


def _read():
    return list(Product.objects.values("slug", "name", "text", "price", "stock", "art"))
