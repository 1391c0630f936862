"""For every test run: the folder `queue/` beside manage.py must not hide the standard library's `queue`.

pytest names a test file after its path. For queue/tests/test_x.py it wants a module `queue` as parent, and puts an empty one in the
place of the standard library's unless that looks like a package. With a `__path__` it does.
"""

from __future__ import annotations

import queue
from pathlib import Path

queue.__path__ = [str(Path(__file__).parent / "queue")]  # type: ignore[attr-defined]
