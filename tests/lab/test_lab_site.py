"""What the lab takes from a browser, and what it remembers."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from dss_dev.lab.desk import Desk
from dss_dev.lab.lab import SEEN_MAX, Lab
from dss_dev.lab.relays import Relays
from dss_dev.lab.server import LabServer, Step
from dss_dev.local_cluster import LocalNode, NotReady


@pytest.mark.parametrize("choice", ["-1", "true", '"0"', "0.5"])
def test_a_choice_is_the_number_of_an_option(choice: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(f'{{"choice":{choice}}}', type=Step)


async def test_a_lab_that_is_open_for_long_does_not_remember_every_event(tmp_path: Path) -> None:
    lab = Lab([LocalNode("node-1", 18_101, {}, tmp_path / "log")], Desk([]), cast(Relays, None))
    row: dict[str, Any] = {"node": "node-1", "kind": "role", "text": "leads"}
    for number in range(0, 2 * SEEN_MAX, 10):
        events = [{**row, "id": str(one)} for one in range(number + 10, max(0, number - 90), -1)]
        lab._took({"kind": "changes", "events": events})
    assert len(lab._seen_events) == SEEN_MAX
    texts = [event[2] for event in lab.recording.events]
    assert len(texts) == 2 * SEEN_MAX, "each event was recorded once"


def test_a_lab_whose_relays_do_not_start_says_so(tmp_path: Path) -> None:
    class Broken:
        async def start(self) -> None:
            raise OSError("no relays")

    errors: list[str] = []

    def start() -> None:
        try:
            server.start()
        except NotReady as error:
            errors.append(str(error))

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = LabServer(Lab([], Desk([]), cast(Relays, Broken())), listener, lambda: None)
        starting = threading.Thread(target=start, daemon=True)
        starting.start()
        starting.join(60)
        assert not starting.is_alive(), "it still waits"
        server.stop()
    assert errors == ["The lab did not start: no relays"]
