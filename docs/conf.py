"""Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

project = "Distributed Sync System"
project_copyright = "the Distributed Sync System authors"
author = "the Distributed Sync System authors"

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
# Links to files of the repository outside docs/ are checked by tests/node/test_docs.py.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
html_theme = "furo"
html_title = "Distributed Sync System"
html_show_sphinx = False
# A page that names a missing page, heading or picture fails the build (`-W`).
nitpicky = True
