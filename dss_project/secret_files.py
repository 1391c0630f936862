"""Secrets that a node generates at its first start, in files that only its user can read.

`python -m dss_project.secret_files FILE` keeps the secret of a cluster in FILE: the one in DSS_CLUSTER_SECRET, otherwise the one that is
there already, otherwise a new one. Compose runs it before the nodes.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

RANDOM_BYTES = 33


def read_or_make(path: Path) -> str:
    """The content of `path`, or a new secret, which `keep` can write."""
    try:
        return path.read_text().strip() or secrets.token_urlsafe(RANDOM_BYTES)
    except OSError:
        return secrets.token_urlsafe(RANDOM_BYTES)


def keep(path: Path, secret: str) -> None:
    """Write `secret` to a new file with mode 0600. An existing file is not changed, unless a full disk has left it empty."""
    if path.exists() and not path.stat().st_size:
        path.unlink()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secret + "\n")
        with suppress(FileExistsError):
            os.link(part, path)
    finally:
        part.unlink(missing_ok=True)


def main(path: Path, given: str) -> None:
    """See the module."""
    if given and given != read_or_make(path):
        path.unlink(missing_ok=True)
    keep(path, given or secrets.token_urlsafe(RANDOM_BYTES))


if __name__ == "__main__":
    main(Path(sys.argv[1]), os.environ.get("DSS_CLUSTER_SECRET", "").strip())
