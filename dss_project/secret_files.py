"""Secrets that a node generates at its first start, in files that only its user can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

RANDOM_BYTES = 33


def read_or_make(path: Path) -> str:
    """The content of `path`, or a new secret, which `keep` can write."""
    try:
        return path.read_text().strip() or secrets.token_urlsafe(RANDOM_BYTES)
    except OSError:
        return secrets.token_urlsafe(RANDOM_BYTES)


def keep(path: Path, secret: str) -> None:
    """Write `secret` to a new file with mode 0600. An existing file is not changed."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
