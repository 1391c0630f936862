"""Three nodes are upgraded from the older release one at a time, under load; the steps of `make upgrade`, in a smaller size."""

from __future__ import annotations

import pytest

from dss_dev import checkouts, upgrade

pytestmark = pytest.mark.cluster


@pytest.mark.skipif(checkouts.tested_checkout() is not None, reason="chooses its checkouts itself")
def test_a_cluster_is_upgraded_node_by_node_and_can_go_back_until_the_version_rises(tmp_path, prepare_pages):
    said: list[str] = []
    done = upgrade.run(tmp_path, said.append, is_short=True, prepare=prepare_pages)
    steps = [(what, node) for what, node, *_ in done.rows]
    assert steps == [
        ("forward, held", "node-1"), ("back", "node-1"), ("forward", "node-1"), ("forward", "node-2"), ("forward", "node-3"),
    ]  # fmt: skip
    assert "start a newer release" in said[-1]
    assert done.load.answered > 5 * upgrade.WRITES_PER_STEP
