"""`manage.py runserver`: says how to start a node instead."""

from __future__ import annotations

import sys

from django.core.management.base import BaseCommand

INSTEAD = """\
runserver cannot run a node: a node is a web server and a Raft member in one process. Use instead
  make run              three nodes on 8101, 8102 and 8103
  make run NODES=1      one node on 8201
  manage.py node        one node with the settings of the environment"""


class Command(BaseCommand):
    help = "Not used here: says what to use instead (make run, manage.py node)."
    requires_system_checks: list[str] = []

    def run_from_argv(self, argv: list[str]) -> None:
        sys.exit(INSTEAD)
