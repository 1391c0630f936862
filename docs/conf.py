"""Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import generated  # noqa: E402
import links  # noqa: E402

TABLE = re.compile(r"(?:^\|.*\|\n)+", re.MULTILINE)

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
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
# A page that names a missing page, heading or picture fails the build (`-W`).
nitpicky = True


def setup(app: Any) -> None:
    app.connect("source-read", page_read)
    app.connect("include-read", include_read)


def page_read(app: Any, page: str, source: list[str]) -> None:
    """Put what is generated from the code in the place of its marker, such as `<!-- generated: settings -->`."""
    path = f"docs/{page}.md"
    text = links.for_site(generated.fill_in(source[0]), path, path)
    # site.css shows a row of these tables as a block on a phone.
    source[0] = TABLE.sub(r":::{container} rows\n\n\g<0>\n:::\n", text) if page.startswith("reference/") else text


def include_read(app: Any, file: Path, page: str, source: list[str]) -> None:
    """A README becomes a part of a page."""
    source[0] = links.for_site(source[0], f"docs/{file}", f"docs/{app.env.docname}.md")
