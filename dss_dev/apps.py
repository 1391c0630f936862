"""The Django app of the development commands."""

from __future__ import annotations

from django.apps import AppConfig


class DssDevConfig(AppConfig):
    name = "dss_dev"
    verbose_name = "Development"
