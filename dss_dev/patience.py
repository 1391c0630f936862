"""How long tests wait for what must happen. A test that passes does not wait, so it may be long: machines are busy, and pause."""

from __future__ import annotations

import os

#: A planted bug that shows when a wait is over sets it lower.
VARIABLE = "TEST_PATIENCE_S"
PATIENCE_S = float(os.environ.get(VARIABLE, "60"))
