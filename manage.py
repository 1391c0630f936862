#!/usr/bin/env python
"""The commands: `node` runs a node, `cluster` several, `status` asks one; the rest is Django's."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dss_project.settings")
    from dss_project.config import ConfigError, NodeConfig

    try:
        NodeConfig.from_env()
    except ConfigError as error:
        sys.exit("\n  ".join(["These settings cannot be used:", *error.faults]))
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
