from __future__ import annotations

import pytest

from dss_queue.testing import Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()
