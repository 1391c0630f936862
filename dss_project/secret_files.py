"""Secrets a node makes for itself at its first start, and keeps in files that only its user can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

RANDOM_BYTES = 33


def read_or_make(path: Path) -> str:
    """What `path` holds, or a new secret that is not written yet (see `keep`)."""
    try:
        return path.read_text().strip() or secrets.token_urlsafe(RANDOM_BYTES)
    except OSError:
        return secrets.token_urlsafe(RANDOM_BYTES)


def keep(path: Path, secret: str) -> None:
    """Write `secret` to a new file of mode 0600; an existing one stays as it is."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
