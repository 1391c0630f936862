"""Other versions of Python on this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def find_python(number: str) -> str | None:
    """An interpreter of this version: on the path, or of pyenv."""
    found = [shutil.which(f"python{number}"), *map(str, Path.home().glob(f".pyenv/versions/{number}.*/bin/python"))]
    for python in filter(None, found):
        asked = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True, text=True
        )
        if asked.stdout.strip() == number:
            return python
    return None
