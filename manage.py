#!/usr/bin/env python
"""Commands at a terminal: `manage.py help` lists them."""

import sys
from importlib.util import find_spec

from dss_project.command_line import manage

if __name__ == "__main__":
    if sys.argv[1:2] in (["cluster"], ["join"]) and find_spec("dss_dev"):
        # Before Django is set up with the settings of this process.
        from dss_dev.preloaded import fork_here

        fork_here()
    manage()
