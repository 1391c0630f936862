"""`manage.py settings_table`: the README's table of settings, generated from the code."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from dss_project.config import settings_table


class Command(BaseCommand):
    help = "Print every setting as a Markdown table."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write("| variable | default | meaning |\n|---|---|---|")
        for row in settings_table():
            self.stdout.write(f"| `{row.variable}` | {row.default} | {row.meaning} |")
