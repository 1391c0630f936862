"""How new nodes form a cluster, and what an empty or outdated store may do."""

from __future__ import annotations

import random

from dss_raft.core import CoreConfig, RaftCore, Role
from dss_raft.core.formation import Formation, NodeIdentity
from dss_raft.core.messages import AppendReply, Configuration, Member, PreVote, RequestVote, VoteReply
from dss_raft.core.ready import BootState, HardState, SnapshotMeta

MEMBERS = tuple(Member(node, f"http://{node}") for node in "abc")
FORMED = Configuration(tuple(Member(node, f"http://{node}", store=f"{node}0") for node in "abc"))


def identity(node: str, store: str = "", configuration: Configuration | None = None, would_form: str = "abc", index: int = 0):
    return NodeIdentity(store or f"{node}0", 1, 7, index, configuration, tuple(would_form))


def formation(node: str = "a", store: str = "", members: tuple[Member, ...] = MEMBERS) -> Formation:
    return Formation(node, store or f"{node}0", members)


def test_the_smallest_id_forms_the_cluster_when_all_new_members_are_there():
    first = formation("a")
    first.heard("b", identity("b"))
    assert first.decide() is None
    assert "waits for c" in first.reason()
    first.heard("c", identity("c"))
    assert first.decide() == FORMED
    other = formation("b")
    for peer in "ac":
        other.heard(peer, identity(peer))
    assert other.decide() is None, "only one node makes the first configuration"
    assert "waits for a" in other.reason()


def test_a_connection_that_is_lost_says_nothing():
    first = formation("a")
    first.heard("b", identity("b"))
    first.heard("c", identity("c"))
    first.lost("b")
    assert first.decide() is None


def test_members_that_name_other_members_do_not_form():
    first = formation("a")
    first.heard("b", identity("b"))
    first.heard("c", identity("c", would_form="bc"))
    assert first.decide() is None
    assert "PEERS differ: here a, b, c; at c b, c" in first.reason()


def test_a_member_with_its_store_adopts_the_newest_configuration():
    newer = Configuration((*FORMED.members, Member("d", "http://d", store="d0")))
    node = formation("b")
    node.heard("a", identity("a", configuration=FORMED))
    node.heard("c", identity("c", configuration=newer, index=9))
    assert node.decide() == newer


def test_a_member_accepts_no_log_before_it_has_adopted_the_configuration():
    """A leader may send entries while a slow disk still writes the configuration. The log would begin without members."""
    assert not formation("c").accepts_log_of(identity("a", configuration=FORMED))


def test_an_empty_disk_of_a_member_forms_nothing_while_any_peer_is_formed():
    node = formation("a", store="a1")
    node.heard("b", identity("b", configuration=FORMED))
    node.heard("c", identity("c"))
    assert node.decide() is None
    assert "manage.py member replace a" in node.reason()
    assert not node.accepts_log_of(identity("b", configuration=FORMED))


def test_a_node_that_joins_waits_for_the_log():
    node = formation("d", members=())
    node.heard("a", identity("a", configuration=FORMED))
    assert node.decide() is None
    added = Configuration((*FORMED.members, Member("d", "http://d", learner=True)))
    node.heard("a", identity("a", configuration=added, index=5))
    assert node.accepts_log_of(identity("a", configuration=added, index=5))


def core(configuration: Configuration, store: str = "a0", is_outdated: bool = False) -> RaftCore:
    config = CoreConfig(node_id="a", election_ticks_min=5, election_ticks_max=10, heartbeat_ticks=2, store_id=store)
    boot = BootState(HardState(), SnapshotMeta(0, 0, configuration), [], is_outdated)
    return RaftCore(config, boot, random.Random(1))


def answers(node: RaftCore) -> list[object]:
    messages: list[object] = []
    while (ready := node.take_ready()) is not None:
        messages += ready.messages
        if ready.persist is not None:
            node.persisted(ready.persist.number)
    return messages


def has_no_vote(node: RaftCore) -> None:
    """It grants no vote, and does not campaign."""
    node.step(RequestVote(sender="b", to="a", term=3, last_index=9, last_term=2), "b0")
    node.step(PreVote(sender="b", to="a", term=4, last_index=9, last_term=2), "b0")
    assert [message.granted for message in answers(node)] == [False, False]
    for _ in range(50):
        node.tick()
    assert node.role is not Role.CANDIDATE


def test_an_empty_store_has_no_vote():
    has_no_vote(core(Configuration(())))


def test_another_store_of_a_member_has_no_vote():
    has_no_vote(core(FORMED, store="a1"))


def test_a_store_that_was_put_back_has_no_vote():
    has_no_vote(core(FORMED, is_outdated=True))


def test_the_vote_of_another_store_does_not_count():
    node = core(FORMED)
    node.campaign(force=True)
    answers(node)
    node.step(VoteReply(sender="b", to="a", term=node.term, granted=True), "b1")
    assert node.role is Role.CANDIDATE
    node.step(VoteReply(sender="b", to="a", term=node.term, granted=True), "b0")
    assert node.role is Role.LEADER


def test_a_leader_finds_a_follower_that_lost_what_it_acknowledged():
    node = core(FORMED)
    node.campaign(force=True)
    answers(node)
    node.step(VoteReply(sender="b", to="a", term=node.term, granted=True), "b0")
    answers(node)
    node.step(AppendReply(sender="b", to="a", term=node.term, ok=True, match=1, prev_index=1), "b0")
    answers(node)
    node.peer_restarted("b")
    (probe,) = [message for message in answers(node) if message.to == "b"][:1]
    assert probe.prev_index == 1, "it asks about what was acknowledged"
    node.step(AppendReply(sender="b", to="a", term=node.term, ok=False, match=0, prev_index=1), "b0")
    assert node.found_outdated == ["b"]
    (again,) = [message for message in answers(node) if message.to == "b"][:1]
    assert again.prev_index == 0, "and sends it again: no member stays behind while a leader is there"


def test_a_leader_writes_an_unknown_store_into_the_log():
    node = core(Configuration(tuple(Member(node, "") for node in "abc")))
    node.campaign(force=True)
    answers(node)
    node.step(VoteReply(sender="b", to="a", term=node.term, granted=True), "b7")
    for index in range(1, 4):
        answers(node)
        node.step(AppendReply(sender="b", to="a", term=node.term, ok=True, match=index, prev_index=index), "b7")
        for _ in range(2):
            node.tick()
    assert {member.id: member.store for member in node.configuration.members} == {"a": "a0", "b": "b7", "c": ""}
    node.step(VoteReply(sender="b", to="a", term=node.term, granted=True), "b8")
    assert node.membership.is_other_store("b", "b8")


def elected(match: int = 1) -> RaftCore:
    """The leader of term 1, which "b" has elected. "b" has acknowledged entries up to `match`."""
    node = core(FORMED)
    node.campaign(force=True)
    answers(node)
    node.step(VoteReply(sender="b", to="a", term=node.term, granted=True), "b0")
    answers(node)
    if match:
        node.step(AppendReply(sender="b", to="a", term=node.term, ok=True, match=match, prev_index=match), "b0")
    return node


def test_a_leader_knows_which_store_has_lost_what_it_acknowledged():
    """Whether the leader would send it entries or a snapshot."""
    node = elected()
    assert node.knows_newer("b", "b0", 1, 0)
    assert node.knows_newer("b", "b0", 0, 9), "it has forgotten its vote"
    assert not node.knows_newer("b", "b0", 1, 1)
    assert not node.knows_newer("b", "b0", 2, 0), "in a later term, entries may have been replaced"
    assert not node.knows_newer("b", "b1", 0, 0), "another store promised it"
    assert not node.knows_newer("c", "c0", 0, 0), "it has promised nothing"
    node.peer_restarted("b")
    assert node.knows_newer("b", "b0", 1, 0)


def test_a_deposed_leader_remembers_what_was_acknowledged():
    node = elected()
    node.step(RequestVote(sender="c", to="a", term=5, last_index=9, last_term=4, transfer=True), "c0")
    assert node.role is Role.FOLLOWER
    assert node.knows_newer("b", "b0", 1, 0)
    assert not node.knows_newer("b", "b0", 1, 1)
    assert not node.knows_newer("c", "c0", 0, 0)


def test_a_member_remembers_who_voted_for_it():
    node = elected(match=0)
    assert node.knows_newer("b", "b0", 0, 9)
    assert not node.knows_newer("b", "b0", 1, 0)


def test_what_one_store_acknowledged_is_not_asked_of_the_next_one():
    """The log does not name the store of a learner yet when its disk is emptied."""
    node = core(Configuration((*FORMED.members, Member("d", "http://d", learner=True))))
    node.campaign(force=True)
    answers(node)
    node.step(VoteReply(sender="b", to="a", term=1, granted=True), "b0")
    answers(node)
    node.step(AppendReply(sender="d", to="a", term=1, ok=True, match=1, prev_index=1), "d0")
    node.peer_restarted("d")
    node.step(AppendReply(sender="d", to="a", term=1, ok=False, match=0, prev_index=1), "d1")
    assert not node.found_outdated
    assert not node.knows_newer("d", "d1", 0, 0)
