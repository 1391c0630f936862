"""The load on the simulated cluster: commands, reads, and membership changes."""

from __future__ import annotations

from collections.abc import Callable

import sim_profile
from sim_drivers import RESEND_US, Drivers
from sim_node import SimNode
from sim_sessions import Forward

from dss_raft.core import AddLearner, Busy, ChangeRefused, NotLeader, QuorumAtRisk, Remove, Role
from dss_raft.core.messages import Configuration

NODES_MAX = 9


class Load(Drivers):
    """Clients and an administrator."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None, profile: sim_profile.Profile | None) -> None:
        super().__init__(seed, trace, profile)
        self._next_data = 0
        self._next_context = 0
        #: disks that were damaged, emptied or put back
        self.losses = 0
        self._later(self.profile.client_us, self._client)
        self._later(self.profile.read_us, self._read)
        self._later(self.profile.admin_us, self._admin)

    def _client(self) -> None:
        if not self.healed:
            self._later(self.profile.client_us, self._client)
        awake = self._awake()
        if not awake:
            return
        # any node that believes it is the leader, even if it has been deposed
        node = self.rng.choice([node for node in awake if node.core.role is Role.LEADER] or awake)
        burst = self.rng.randint(1, self.profile.burst)
        if self.profile.sessions:
            self._submit(self.rng.choice(awake), burst)
            return
        for _ in range(burst):
            self._propose(node, self._data(node))
        self._drain(node)

    def _data(self, node: SimNode) -> bytes:
        self._next_data += 1
        return b"%d" % self._next_data

    def _submit(self, node: SimNode, count: int) -> None:
        """A node's callers: their commands go to the leader, if the node knows one."""
        assert node.sessions is not None
        groups = []
        for _ in range(count):
            self._next_data += 1
            groups.append(node.sessions.submit(self._next_data))
        self._forward(node, groups + self.clients.groups(node))

    def _resend(self, node: SimNode, life: int) -> None:
        """Send everything in flight again, from time to time and so after a change of leader."""
        if life != node.life or self._postponed(node, self._resend, node, life):
            return
        self._later(RESEND_US, self._resend, node, life)
        assert node.sessions is not None
        self._forward(node, node.sessions.again())

    def _forward(self, node: SimNode, groups: list[bytes]) -> None:
        leader_id = node.core.leader_id
        if not groups or not leader_id:
            return
        if leader_id == node.id:
            assert node.sessions is not None
            node.sessions.propose(groups)
            self._drain(node)
        else:
            self._transmit(Forward(node.id, leader_id, groups))

    def _arrived(self, node: SimNode, forward: Forward) -> None:
        if node.core.role is Role.LEADER:
            assert node.sessions is not None
            node.sessions.propose(forward.groups)

    def _propose(self, node: SimNode, data: bytes) -> int:
        try:
            index = node.core.propose(data)
        except (NotLeader, Busy):
            return 0
        self.check.proposed(node, index, data)
        return index

    def _read(self) -> None:
        if not self.healed:
            self._later(self.profile.read_us, self._read)
        awake = self._awake()
        if awake:
            node = self.rng.choice(awake)
            self._next_context += 1
            self.check.read_asked(self._next_context)
            node.core.read_index(self._next_context)
            self._drain(node)

    def _admin(self) -> None:
        if self.healed:
            return
        self._later(self.rng.randint(1, 2 * self.profile.admin_us), self._admin)
        if not any(self.profile.admin_weights):
            return
        (action,) = self.rng.choices(
            (self._transfer, self._force, self._add, self._remove, self._lose_disk), weights=self.profile.admin_weights
        )
        # deposed leaders, too: they do not know it yet
        leaders = [node for node in self._awake() if node.core.role is Role.LEADER]
        if leaders:
            self._carry_out(self.rng.choice(leaders), action)

    def _carry_out(self, leader: SimNode, action: Callable[[SimNode], None]) -> None:
        try:
            action(leader)
        except QuorumAtRisk:
            self.happened["quorum at risk"] += 1
        except (Busy, ChangeRefused, NotLeader):
            return
        self._drain(leader)

    def _transfer(self, leader: SimNode) -> None:
        to = self.rng.choice(leader.core.membership.voters)
        self._say(leader.id, f"transfer to {to}")
        leader.core.transfer(to)
        self.happened["transfer"] += 1

    def _force(self, leader: SimNode) -> None:
        node = self.rng.choice(self._awake())
        self._say(node.id, "campaign by force")
        self.happened["forced election"] += 1
        node.core.campaign(force=True)
        self._drain(node)

    def _add(self, leader: SimNode) -> None:
        if len(self.nodes) >= NODES_MAX:
            return
        replaced = [node for node in self.nodes.values() if node.impaired and node.id not in leader.core.membership.ids]
        if replaced:
            self._add_again(leader, self.rng.choice(replaced))
            return
        node_id = chr(97 + len(self.nodes))
        leader.core.change(AddLearner(node_id, ""))
        self._say(leader.id, f"add {node_id}")
        self.happened["member added"] += 1
        self._start_node(node_id, Configuration(()))

    def _add_again(self, leader: SimNode, node: SimNode) -> None:
        """Replace a node that was removed: its id comes back with an empty disk."""
        store_id = f"{node.id}{node.disks}"
        leader.core.change(AddLearner(node.id, "", store_id))
        self._say(leader.id, f"replace {node.id}")
        self.happened["member replaced"] += 1
        node.gone = node.impaired = node.was_restored = False
        self._crash(node)
        node.new_disk()
        self._restart(node, node.life)

    def _remove(self, leader: SimNode) -> None:
        """Remove any member. While a disk is lost, an error of the administrator could cost the quorum, so the leader asks first.

        A node whose disk was put back is often removed itself: it can be reached, but has no vote.
        """
        members = [member.id for member in leader.core.configuration.members]
        impaired = [member for member in members if self.nodes[member].impaired]
        restored = [member for member in impaired if self.nodes[member].was_restored]
        if impaired and (not restored or self.rng.random() < 0.5):
            node_id = self.rng.choice(members)
            self._say(leader.id, f"asks who can be reached, to remove {node_id}")
            since, force = leader.core.ask_members(), self.rng.random() < 0.5
            wait_us = self.rng.randint(1, 10) * self.profile.tick_us
            stores = leader.core.membership.stores
            # A learner whose disk was lost before the log named its store is promoted with the new one.
            without_vote = [
                member
                for member in impaired
                if self.nodes[member].store.is_outdated or stores.get(member) != self.nodes[member].store.id
            ]
            self._later(
                wait_us, self._remove_asked, leader, leader.life, since, node_id, force, impaired, without_vote, self.losses
            )
        elif restored or len(leader.core.membership.voters) > 2:
            node_id = self.rng.choice(restored or members)
            self._say(leader.id, f"remove {node_id}")
            leader.core.change(Remove(node_id))
            self.happened["member removed"] += 1

    def _remove_asked(
        self,
        leader: SimNode,
        life: int,
        since: int,
        node_id: str,
        force: bool,
        impaired: list[str],
        without_vote: list[str],
        losses: int,
    ) -> None:
        """The members have had time to answer. Nothing else is lost meanwhile: the leader could not know of it."""
        if self.healed or leader.life != life or self.losses != losses or not all(self.nodes[m].impaired for m in impaired):
            return
        if self._postponed(leader, self._remove_asked, leader, life, since, node_id, force, impaired, without_vote, losses):
            return

        def remove(leader: SimNode) -> None:
            self._say(leader.id, f"remove {node_id}{' by force' if force else ''}")
            leader.core.change(Remove(node_id), force=force, since=since)
            self.check.removed(leader, node_id, without_vote)
            self.happened["member removed"] += 1
            self.happened["removal while one is lost"] += 1

        self._carry_out(leader, remove)

    def _lose_disk(self, leader: SimNode) -> None:
        """A disk is damaged, emptied or put back. One node at a time, to keep a quorum."""
        if any(node.impaired for node in self.nodes.values()):
            return
        if any(len(node.core.membership.voters) < 3 for node in self.nodes.values() if node.core.membership.voters):
            return
        others = [node for node in self.nodes.values() if node is not leader and node.id in leader.core.membership.ids]
        outdated = [node for node in others if self._is_known_to_be_older(node)]
        if outdated and (self.healed or self.rng.random() < 0.8):
            self.losses += 1
            self._restore_disk(self.rng.choice(outdated))
        elif others and not self.healed:
            self.losses += 1
            self.rng.choice((self._flip_bit, self._empty_disk))(self.rng.choice(others))
            for _ in range(4):
                self._later(self.rng.randint(1, 40) * self.profile.tick_us, self._remove_after_a_loss)
        if self.profile.outage and not self.healed and self.rng.random() < self.profile.outage:
            self._cut_off(leader)

    def _cut_off(self, leader: SimNode) -> None:
        """The leader is cut off, and nodes that were cut off before come back."""
        self._say(leader.id, "is cut off, and no other node is")
        self.cut = {}
        for other in self.nodes:
            if other != leader.id:
                self.cut[leader.id, other] = self.cut[other, leader.id] = True

    def _is_known_to_be_older(self, node: SimNode) -> bool:
        """True if at least one node that `node` reaches knows more than its backup. What no node knows cannot be found out."""
        backup = node.backup
        return backup is not None and any(
            self._knows_more(other, node, backup, backup.starts + 1) for other in self.nodes.values()
        )

    def _flip_bit(self, node: SimNode) -> None:
        """A flipped bit, found at start: the store refuses, and the node never returns."""
        self._say(node.id, "loses its disk")
        self.happened["flipped bit"] += 1
        node.gone = node.impaired = True
        self._crash(node)

    def _empty_disk(self, node: SimNode) -> None:
        """The node starts again with an empty disk, under its old id."""
        self._crash(node)
        self._say(node.id, "starts with an empty disk")
        self.happened["empty disk"] += 1
        node.impaired = True
        node.lost = node.store
        node.new_disk()

    def _restore_disk(self, node: SimNode) -> None:
        """An older copy of the disk is put back."""
        backup = node.backup
        assert backup is not None
        self._crash(node)
        self._say(node.id, "starts with an older copy of its disk")
        self.happened["restored disk"] += 1
        node.lost, node.store = node.store, backup.copy()
        node.impaired = node.was_restored = True
        self._restart(node, node.life)

    def _remove_after_a_loss(self) -> None:
        leader = self._leader()
        if leader is not None and not self.healed:
            self._carry_out(leader, self._remove)
