"""The lessons of the lab, in their order."""

from __future__ import annotations

from dss_dev.lab.scenes.bugs import FindTheBug
from dss_dev.lab.scenes.dead_letter import DeadLetter
from dss_dev.lab.scenes.deadlock import Deadlock
from dss_dev.lab.scenes.election import Election
from dss_dev.lab.scenes.fencing import Fencing
from dss_dev.lab.scenes.mesi import Mesi
from dss_dev.lab.scenes.scene import Scene

SCENES: tuple[type[Scene], ...] = (Election, Deadlock, DeadLetter, Fencing, Mesi, FindTheBug)
