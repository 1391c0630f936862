"""The commands at a terminal: `manage.py` in a checkout, `dss-node` where the package is installed."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from textwrap import fill

from django.core.management import ManagementUtility, get_commands, load_command_class

from dss_project.config import ConfigError, NodeConfig, Setting, settings_table

NODE_HELP = """\
dss-node runs one node until SIGTERM or Ctrl-C. It keeps its data in .dss/node-1 of the current directory.
`dss-node COMMAND` runs another command, for example `dss-node status`; `dss-node help` lists them.

Settings (environment variables):
"""


class Commands(ManagementUtility):
    """Django's commands and this project's, which `help` lists first."""

    def main_help_text(self, commands_only: bool = False) -> str:
        if commands_only:
            return str(super().main_help_text(commands_only))
        own, others = {}, defaultdict(list)
        for name, app in sorted(get_commands().items()):
            if name == "runserver":
                continue
            if app.startswith("dss_"):
                own[name] = load_command_class(app, name).help.partition(". ")[0].removesuffix(".")
            else:
                others["django" if app == "django.core" else app.rpartition(".")[-1]].append(name)
        width = max(map(len, own))
        lines = [
            f"Type '{self.prog_name} help <command>' for help on one command.",
            "",
            *(f"    {name.ljust(width)}  {summary}" for name, summary in own.items()),
            "",
            "Commands of Django and of other packages:",
        ]
        for app, names in sorted(others.items()):
            lines += ["", f"[{app}]", *(f"    {name}" for name in names)]
        return "\n".join(lines)


def manage(arguments: Sequence[str] = sys.argv) -> None:
    """Run the command that `arguments` name, after a check of the settings."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dss_project.settings")
    try:
        NodeConfig.from_env()
    except ConfigError as error:
        sys.exit("\n  ".join(["These settings cannot be used:", *error.faults]))
    Commands(list(arguments)).execute()


def dss_node() -> None:
    """The command `dss-node`: without arguments a node, with arguments a command of `manage.py`."""
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(NODE_HELP + "\n".join(map(_shown, settings_table())))
        return
    manage(["dss-node", *(arguments or ["node"])])


def _shown(row: Setting) -> str:
    """A row of the table of settings for a terminal."""
    default = f" [{row.default}]" if row.default else ""
    text = f"{row.variable}{default}: {row.meaning}".replace("`", "")
    return fill(text, 100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
