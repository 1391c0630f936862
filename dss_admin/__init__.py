"""A toolkit for lists of live state in Django's admin."""
