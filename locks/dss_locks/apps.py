"""Django's entry for the lock manager."""

from __future__ import annotations

from django.apps import AppConfig


class LocksConfig(AppConfig):
    name = "dss_locks"
    label = "dss_locks"
    verbose_name = "Locks"
