"""A callback that raises must not stop the node, if what it does is upkeep for clients."""

from __future__ import annotations

import pytest

from dss_api.supervised import FAILURES
from dss_raft.listeners import PAUSE_TICKS, Listeners
from dss_raft.replication.machine import Event


@pytest.mark.parametrize("kind", ["tick", "upkeep"])
def test_a_callback_that_raises_is_counted_and_tried_again_later(kind: str) -> None:
    listeners, calls = Listeners(), []
    on, notify = getattr(listeners, f"on_{kind}"), getattr(listeners, f"_notify_{kind}")

    def fails() -> None:
        calls.append("fails")
        raise AttributeError("the connection is gone")

    on(fails)
    on(lambda: calls.append("works"))
    counted = FAILURES.labels("tick")._value.get()
    for _ in range(PAUSE_TICKS + 2):
        notify()
    assert calls.count("fails") == 2
    assert calls.count("works") == PAUSE_TICKS + 2
    assert FAILURES.labels("tick")._value.get() == counted + 2


def test_an_event_of_the_log_that_raises_is_a_failure_of_the_node() -> None:
    """What was derived from the state would be wrong from then on, for example the lines of the cache."""
    listeners = Listeners()

    def fails(event: Event, index: int) -> None:
        raise AttributeError("a bug")

    listeners.on_event(Event, fails)
    with pytest.raises(AttributeError):
        listeners._notify_events([(Event(), 1000)], 7)


def test_a_vote_is_told_with_its_candidate() -> None:
    listeners, told = Listeners(), []
    listeners.on_vote(lambda *vote: told.append(vote))
    listeners._notify_vote("node-2", 3, True)
    assert told == [("node-2", 3, True)]
