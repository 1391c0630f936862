"""The Django app of the lock manager."""

from __future__ import annotations

from django.apps import AppConfig


class DssLocksConfig(AppConfig):
    name = "dss_locks.django_app"
    label = "dss_locks"
    verbose_name = "Locks"
