"""The Django app of the pages."""

from __future__ import annotations

from django.apps import AppConfig


class DssConsoleConfig(AppConfig):
    name = "dss_console"
    verbose_name = "Pages"
