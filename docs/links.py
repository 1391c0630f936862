"""Links between files of the repository, as they must be on the site.

In the repository a link leads to a file, which works in an editor and on a forge. On the site some of these files are pages of their own.
"""

from __future__ import annotations

import re
from posixpath import dirname, join, normpath, relpath

#: files outside docs/ that are pages of the site
PAGES = {
    "CHANGELOG.md": "docs/changelog.md",
    "CONTRIBUTING.md": "docs/contributing.md",
    "README.md": "docs/index.md",
    "SECURITY.md": "docs/security.md",
    "cache/README.md": "docs/explanation/cache.md",
    "dss_project/README.md": "docs/explanation/node.md",
    "examples/celery/README.md": "docs/how-to/celery-example.md",
    "examples/shop/README.md": "docs/how-to/shop.md",
    "locks/README.md": "docs/explanation/locks.md",
    "queue/README.md": "docs/explanation/queue.md",
    "raft/README.md": "docs/explanation/raft.md",
}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def for_site(text: str, file: str, page: str) -> str:
    """`text` of `file` with its relative links changed to what they are on `page`; both are paths in the repository."""

    def moved(match: re.Match[str]) -> str:
        target = normpath(join(dirname(file), match[1]))
        return relpath(PAGES.get(target, target), dirname(page))

    return _LINK.sub(moved, text)
