"""Repeated requests with the state machines of a node: what they do at a lock, a message or a counter, they do once."""

from __future__ import annotations

import pytest

from dss_cache.core.commands import Delete, Incr, Put, WrittenBack
from dss_dev.request_world import RequestWorld, once
from dss_locks.core.commands import Acquire, Release
from dss_locks.core.table import LockTable
from dss_project.runtime import state_machines
from dss_queue.core.commands import Ack, Consume, NewMessage, Publish
from dss_raft.replication.commands import Cancel

WAIT = Acquire(key="k", client="me", wait_ms=20_000)
CONSUME = Consume(topic="t", group="g", timeout_ms=20_000, visibility_ms=30_000)
PUBLISH = Publish(messages=[NewMessage("t", b"1", "", -1, 0, "", b"")])


class World(RequestWorld):
    def __init__(self) -> None:
        super().__init__(machines=state_machines)

    @property
    def table(self) -> LockTable:
        return self.replica.machines["locks"]  # type: ignore[return-value]

    def holder(self) -> str:
        lock = self.table.locks.get("k")
        return lock.holder.client if lock is not None and lock.holder is not None else ""


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(params=[False, True], ids=["", "restored"])
def step(request: pytest.FixtureRequest, world: World) -> object:
    """Between the steps: nothing, or a restore of the replica from its snapshot."""
    return world.restore if request.param else lambda: None


def test_a_release_is_repeated_without_releasing_the_next_grant(world, step):
    world.run(once(1, Acquire(key="k", client="me")))
    first = world.run(once(2, Release(key="k", client="me")))
    step()
    world.run(once(3, Acquire(key="k", client="me")))
    assert world.run(once(2, Release(key="k", client="me")), "b") == first
    assert world.holder() == "me"


def test_a_wait_for_a_lock_goes_on_at_another_node(world, step):
    world.run(Acquire(key="k", client="other"))
    world.send(once(1, WAIT))
    behind = world.send(Acquire(key="k", client="third", wait_ms=20_000), "b")
    second = world.send(once(1, WAIT), "b")
    step()
    world.restart("a")
    step()
    world.run(Release(key="k", client="other"))
    granted = world.answer(second, "b")
    assert granted is not None
    assert (granted.body["fencing_token"], granted.index, world.holder()) == (world.index, world.index, "me")
    assert world.run(once(1, WAIT)) == granted
    assert world.answer(behind, "b") is None, "it kept its position in the queue"


def test_a_lock_whose_caller_hung_up_is_given_back_and_the_repeat_gets_it_again(world, step):
    first = world.send(once(1, WAIT))
    assert world.holder() == "me"
    step()
    world.send(Cancel(seq=first))
    assert world.holder() == ""
    step()
    granted = world.run(once(1, WAIT), "b")
    assert granted.body == {"fencing_token": world.index, "expires_in_ms": 30_000, "reentrant": False}


def test_a_lock_that_another_caller_may_have_got_stays(world, step):
    first = world.send(once(1, WAIT))
    second = world.run(once(1, WAIT), "b")
    step()
    world.send(Cancel(seq=first))
    assert world.holder() == "me"
    assert second.body["fencing_token"] == second.index < world.index


def test_a_lock_that_was_granted_while_its_caller_hung_up_is_given_back(world, step):
    world.run(Acquire(key="k", client="other"))
    first = world.send(once(1, WAIT))
    step()
    world.run(Release(key="k", client="other"))
    assert world.holder() == "me"
    step()
    world.send(Cancel(seq=first))
    assert (world.holder(), len(world.table.waiters.by_origin)) == ("", 0)


def test_a_message_whose_consumer_hung_up_goes_back_and_the_repeat_gets_it_again(world, step):
    world.run(PUBLISH)
    first = world.send(once(1, CONSUME))
    step()
    world.send(Cancel(seq=first))
    step()
    (message,) = world.run(once(1, CONSUME), "b").body["messages"]
    assert message["attempt"] == 1, "the delivery that did not arrive is no attempt"


def test_a_consume_that_waits_goes_on_at_another_node(world, step):
    world.send(once(1, CONSUME))
    second = world.send(once(1, CONSUME), "b")
    step()
    world.restart("a")
    step()
    world.run(PUBLISH)
    found = world.answer(second, "b")
    assert found is not None
    (message,) = found.body["messages"]
    assert world.run(once(1, CONSUME)) == found
    ack = Ack(topic="t", group="g", msg_id=message["msg_id"], receipt=message["receipt"])
    assert world.run(once(2, ack)).body["acked"] is world.run(once(2, ack), "b").body["acked"] is True


def test_messages_are_published_once_also_if_the_caller_hung_up(world, step):
    first = world.send(once(1, PUBLISH))
    answer = world.answer(first)
    step()
    world.send(Cancel(seq=first))
    step()
    assert world.run(once(1, PUBLISH), "b") == answer
    consume = Consume(topic="t", group="g", visibility_ms=30_000, max_messages=10)
    assert len(world.run(consume).body["messages"]) == 1


def test_a_counter_that_has_to_be_read_first_is_added_to_once(world, step):
    version = world.run(Put(key="n", value=b"40")).body["version"]
    world.run(WrittenBack(items=[("n", version)]))
    assert "wanted" in world.run(once(1, Incr(key="n", delta=2))).body
    step()
    assert "wanted" in world.run(once(1, Incr(key="n", delta=2)), "b").body, "it had no effect, so it is asked again"
    brought = Incr(key="n", delta=2, base=40, base_version=version)
    first = world.run(once(1, brought))
    step()
    assert first.body["value"] == world.run(once(1, brought), "b").body["value"] == 42
    assert world.run(once(1, Incr(key="n", delta=2)), "b") == first


def test_a_delete_is_repeated_without_deleting_the_next_value(world, step):
    world.run(Put(key="n", value=b"1"))
    first = world.run(once(1, Delete(key="n")))
    world.run(once(2, Put(key="n", value=b"2")))
    step()
    assert world.run(once(1, Delete(key="n")), "b") == first
    assert world.run(once(3, Delete(key="n"))).body["deleted"] is True
