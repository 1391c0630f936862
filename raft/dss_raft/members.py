"""How a node manages the members of its cluster: the first configuration, the links, and requests to the leader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog

from dss_api.errors import Refused
from dss_raft.config import RaftConfig
from dss_raft.core import AddLearner, Busy, Change, ChangeRefused, NotLeader, QuorumAtRisk, RaftCore, Remove, Role
from dss_raft.core.messages import Configuration, Member
from dss_raft.net.control import Handler
from dss_raft.net.links import PeerLinks

log = structlog.get_logger("raft")


def first_members(config: RaftConfig) -> tuple[Member, ...]:
    """The members of the cluster that a new node forms: itself and its `PEERS`; none if it joins a running cluster."""
    if config.join:
        return ()
    return Member(config.node_id, config.url), *(Member(peer.id, peer.url) for peer in config.peers)


def peer_address(url: str, config: RaftConfig) -> tuple[str, int]:
    """Host and peer port of the member at `url`.

    Raises:
        ValueError: the text says what a member's url must look like.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port is None or parts.path.strip("/"):
        raise ValueError("`url` must be like http://node-4:8104 or https://node-4:8104")
    return parts.hostname, parts.port + config.peer_port_offset


def addresses(configuration: Configuration, config: RaftConfig) -> dict[str, tuple[str, int]]:
    """The nodes to link to: the other members. An address in `PEERS` takes precedence over the one in the configuration.

    A node without a configuration waits to be added by a node of `PEERS`.
    """
    known = {peer.id: (peer.host, peer.peer_port) for peer in config.peers}
    if not configuration.members:
        return known
    found = {}
    for member in configuration.members:
        if member.id == config.node_id:
            continue
        try:
            found[member.id] = known.get(member.id) or peer_address(member.url, config)
        except ValueError:
            log.error("raft.no_address", member=member.id, url=member.url, advice="put its address into PEERS")
    return found


def link_members(links: PeerLinks, configuration: Configuration, config: RaftConfig) -> None:
    """Link to every member."""
    for member, address in addresses(configuration, config).items():
        if member not in links.peers:
            links.add_peer(member, address)


def may_connect(core: RaftCore, peer: str) -> bool:
    """Whether to accept this node. It must be a member, unless this node follows no leader.

    Then its own configuration may be old: a member that was added in the meantime, perhaps the leader, can bring it up to date.
    """
    return peer in core.membership.ids or not core.leader_id


def dial_unlinked(core: RaftCore, links: PeerLinks, ticks_per_call: int) -> None:
    """A leader dials the members that should have dialed it, once in an election timeout. They may not know it or its address yet.

    Args:
        ticks_per_call: this is called once in this many ticks.
    """
    if core.role is Role.LEADER and core.ticks % core.config.election_ticks_max < ticks_per_call:
        for peer in core.progress:
            if not links.is_up(peer):
                links.probe(peer)


def unlink_others(core: RaftCore, links: PeerLinks) -> None:
    """Close the links to nodes that are not members, if this node follows a leader and so knows the members."""
    members = {*core.membership.ids, core.leader_id}
    if core.leader_id and core.membership.ids:
        for peer in {*links.peers, *links.up_peers()} - members:
            links.remove_peer(peer)


def has_left(core: RaftCore, node_id: str) -> bool:
    """Whether this node knows for certain that `node_id` is not a member.

    The configuration in force is committed, and this node is not behind the leader: a later configuration may have added `node_id`.
    """
    members = core.membership
    is_current = core.leader_id != "" and core.known_committed <= core.commit_index
    return is_current and 0 < members.index <= core.commit_index and node_id not in members.ids


def can_be_succeeded(core: RaftCore, links: PeerLinks) -> bool:
    """Whether another voter is linked to this node, and they are enough to elect it."""
    voters = [member.id for member in core.configuration.members if not member.learner]
    linked = sum(links.is_up(voter) for voter in voters if voter != core.node_id)
    return linked > 0 and linked + (core.node_id in voters) > len(voters) // 2


def service_urls(config: RaftConfig) -> dict[str, str]:
    """The members' URLs in this node's settings. As for links, they take precedence over those in the configuration."""
    return {**{peer.id: peer.url for peer in config.peers}, config.node_id: config.url}


def status(core: RaftCore, links: PeerLinks, tick_ms: float, urls: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `GET /raft/status` that describe this member, and what it knows about the others.

    Args:
        urls: those of `service_urls`.
    """
    return {
        "node": core.node_id,
        "term": core.term,
        "state": {"code": int(core.role), "name": core.role.name},
        "leader_id": core.leader_id or None,
        "commit_index": core.commit_index,
        "last_applied": core.applied_index,
        "log_len": core.last_index - core.snapshot.index,
        "snapshot_index": core.snapshot.index,
        "members": [
            {
                "id": m.id,
                "url": urls.get(m.id, m.url),
                "learner": m.learner,
                "up": m.id == core.node_id or links.is_up(m.id),
                "outdated": core.is_outdated if m.id == core.node_id else not core.has_vote(m.id),
            }
            for m in core.configuration.members
        ],
        "peers": [
            {
                "id": peer.id,
                "match_index": peer.match,
                "next_index": peer.next,
                "state": peer.state,
                "last_contact_ms": int(peer.contact_ticks * tick_ms),
                "suspected": peer.suspected,
            }
            for peer in core.status().peers
        ],
    }


class LeadingNode(Protocol):
    """What a request to the leader needs from the node that carries it out."""

    node_id: str
    config: RaftConfig
    core: RaftCore

    @property
    def is_leader(self) -> bool: ...

    @property
    def leader_id(self) -> str: ...

    @property
    def applied_index(self) -> int: ...

    @property
    def can_be_succeeded(self) -> bool: ...

    def wake(self) -> None: ...

    def may_add(self, node_id: str) -> bool: ...

    async def until(self, condition: Callable[[], bool]) -> bool: ...

    def status(self) -> dict[str, Any]: ...


def handlers(node: LeadingNode) -> dict[str, Handler]:
    """How `node` carries out the requests of other nodes, or its own, when it leads.

    It transfers leadership once in an election timeout: in a loop, transfers would leave little time for writes. A node that stops is
    not limited.
    """

    transferred_at_s = float("-inf")

    async def transfer(to: str, is_stopping: bool = False) -> dict[str, Any]:
        nonlocal transferred_at_s
        if to == node.node_id:
            return {"leader_id": to}
        timeout_ms, now_s = node.config.raft_election_max_ms, asyncio.get_running_loop().time()
        if node.is_leader and not is_stopping and now_s < transferred_at_s + timeout_ms / 1000:
            raise Refused("over_limit", f"a node can transfer leadership once in RAFT_ELECTION_MAX_MS ({timeout_ms} ms)")
        _guarded("to", lambda: node.core.transfer(to))
        transferred_at_s = now_s
        node.wake()

        def gave_up_or_moved() -> bool:
            if is_stopping and not node.can_be_succeeded:
                return True  # the others stop, too, and one that has begun to take over may be among them
            return not node.core.transferee if node.is_leader else bool(node.leader_id)

        in_time = await node.until(gave_up_or_moved)
        if node.is_leader or not in_time:
            raise Refused("over_limit", f"{to or 'another node'} did not take over in time; it may be down or too far behind")
        return {"leader_id": node.leader_id}

    async def propose(change: Change, force: bool) -> int:
        """Propose the change.

        The members have an election timeout to show that they are reachable. A new leader, or one with an open change, is busy for
        a moment only, so try again.
        """
        refusal: Refused | None = None
        index = asked_in_term = asked = 0
        now_s = asyncio.get_running_loop().time
        may_answer_until = now_s() + node.config.raft_election_max_ms / 1000

        def is_proposed() -> bool:
            nonlocal index, refusal, asked_in_term, asked
            try:
                if asked_in_term != node.core.term:
                    asked_in_term, asked = node.core.term, _guarded("id", node.core.ask_members)
                    node.wake()
                index, refusal = _guarded("id", lambda: node.core.change(change, force=force, since=asked)), None
            except Refused as error:
                if error.code != "over_limit" and not (error.code == "quorum_at_risk" and now_s() < may_answer_until):
                    raise
                refusal = error
            return refusal is None

        await node.until(is_proposed)
        if refusal is not None:
            raise refusal
        return index

    async def change(change: Change, force: bool = False) -> dict[str, Any]:
        index = await propose(change, force)
        node.wake()
        if not await node.until(lambda: node.applied_index >= index):
            raise Refused("unknown_outcome", "the change was proposed but not committed in time")
        return {"members": node.status()["members"], "index": index}

    async def add_member(node_id: str, url: str) -> dict[str, Any]:
        try:
            peer_address(url, node.config)
        except ValueError as error:
            raise Refused("invalid", str(error), field="url") from None
        if not await node.until(lambda: node.may_add(node_id)):
            raise Refused("over_limit", f"a removed process of {node_id} may still hold a cache lease; try again")
        return await change(AddLearner(node_id, url))

    async def remove_member(node_id: str, force: bool = False, reason: str = "", by: str = "") -> dict[str, Any]:
        if force:
            log.warning("raft.forced_removal", member=node_id, reason=reason, by=by)
        return await change(Remove(node_id), force)

    return {"transfer": transfer, "add_member": add_member, "remove_member": remove_member}


def _guarded(field: str, action: Any) -> Any:
    """Run an action of the core; its exceptions become refusals. `field` of the call names the member."""
    try:
        return action()
    except NotLeader as error:
        raise Refused("no_leader", str(error)) from None
    except Busy as error:
        raise Refused("over_limit", f"{error}; try again") from None
    except QuorumAtRisk as error:
        extra = {
            "voters": error.voters,
            "reachable": error.reachable,
            "needed": error.needed,
            "may_force": error.may_force,
            "outdated": error.outdated,
        }
        raise Refused("quorum_at_risk", str(error), **extra) from None
    except ChangeRefused as error:
        raise Refused("invalid", str(error), field=field) from None
