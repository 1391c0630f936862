"""The simulation is a set of modules beside each other; its tests import them as such."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
