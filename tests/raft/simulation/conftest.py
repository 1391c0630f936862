"""The simulator is a set of scripts beside each other; tests import them as such."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
