"""`manage.py changepassword`: says what to use instead."""

from __future__ import annotations

import sys

from django.core.management.base import BaseCommand

INSTEAD = "The users are those of the cluster, not of one node's database. Use instead: manage.py user password NAME"


class Command(BaseCommand):
    help = "Not used here: says what to use instead (manage.py user password)."
    requires_system_checks: list[str] = []

    def run_from_argv(self, argv: list[str]) -> None:
        sys.exit(INSTEAD)
