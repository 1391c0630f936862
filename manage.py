#!/usr/bin/env python
"""Commands at a terminal: `manage.py help` lists them."""

from dss_project.command_line import manage

if __name__ == "__main__":
    manage()
