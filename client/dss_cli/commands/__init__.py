"""The arguments and help texts of `dss`, with `click`.

The modules that talk to a cluster are imported by the commands that need them, so that `--help` and the shell's completion are fast.
"""

from dss_cli.commands.root import dss
from dss_cli.commands.run import run

__all__ = ["dss", "run"]
