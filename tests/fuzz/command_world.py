"""Random commands through the real codec into two replicas, one of which is restored from its snapshot now and then.

The commands are made from their Structs: a new command, or a new field, is tried without any change here. They take the path of a
call: admission, a group, a batch, the decoder, the state machines. So do the commands of sessions and leaders. On the way, groups
arrive twice, too late or with a gap, nodes start again, leaders change, time jumps, and some commands are damaged.

A `Skip` of an entry that was applied is left out: it must stop applying (see `test_apply_stops.py`).
"""

from __future__ import annotations

import random
from collections import Counter, deque

import msgspec
from values import EDGES, NAMES, Seen, Values, can_wait

from dss_api.errors import Refused
from dss_api.request_id import DIGEST_BYTES, RequestId
from dss_project.runtime import state_machines
from dss_raft.core.messages import Entry, EntryKind
from dss_raft.replication.access_tokens import CreateToken, NoteTokensUsed, RevokeToken, RotateToken
from dss_raft.replication.admission import Admission
from dss_raft.replication.batch import SESSION_COMMANDS, encode_batch, encode_group
from dss_raft.replication.client_requests import OpenRequestSession
from dss_raft.replication.commands import Cancel, Command, OpenSession, SetClusterVersion, Skip
from dss_raft.replication.replica import Replica
from dss_raft.replication.state_hash import state_hashes
from dss_raft.replication.users import GROUPS, BeginUsers, ChangeUser, CreateUser, DeleteUser, NewUser
from dss_raft.versions import LATEST

USER_COMMANDS = (BeginUsers, CreateUser, ChangeUser, DeleteUser)
TOKEN_COMMANDS = (CreateToken, RotateToken, RevokeToken, NoteTokensUsed)

#: The replicas' node: both collect the results of its session, so that the results are compared, too.
OURS = "node-1"
NODES = (OURS, "node-2", "node-3")
#: Entries between two comparisons of the whole state, and between two restores.
COMPARE_EVERY, RESTORE_EVERY = 50, 60
COMMANDS_PER_GROUP_MAX = 12
RESENT_MAX = 20


class Diverged(AssertionError):
    """The two replicas are not equal, or applying raised."""


class Session:
    """What a node sends in one incarnation."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.next_seq = 1
        #: groups that may arrive again: the first sequence number and the commands
        self.sent: deque[tuple[int, list[bytes]]] = deque(maxlen=RESENT_MAX)


class CommandWorld:
    """One run. The same seed gives the same commands."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = self.random = random.Random(seed)
        self.seen = Seen()
        names = rng.sample(NAMES, rng.randint(1, len(NAMES)))
        self.values = Values(rng, self.seen, edges=0.03, build=True, names=names)
        self.first, self.second = self._empty(), self._empty()
        self.admission = Admission(self.first.command_types)
        #: Each seed makes much of some commands and little of others, and has its own speed of time.
        self.weights = [rng.choice([0.1, 1, 1, 5]) for _ in self.first.command_types]
        self.step_ms_max = rng.choice([1, 10, 1000, 60_000])
        self.sessions = {node: Session(1) for node in NODES}
        for name in self.first.limits.declared:
            self.seen.add({"limits": name})
        self.term = 1
        self.at_ms = 1_000_000
        self.index = 0
        #: commands by how they ended: applied, refused by admission, refused by a constructor
        self.count: Counter[str] = Counter()
        #: results by code
        self.codes: Counter[str] = Counter()
        self.restores = 0

    @property
    def made(self) -> int:
        """Commands made so far, whatever became of them."""
        return self.count.total()

    def run(self, commands: int) -> None:
        """Raises:
        Diverged: see there.
        """
        while self.made < commands:
            self.step()
        self.compare()

    def step(self) -> None:
        """One entry."""
        rng = self.random
        if rng.random() < 0.01:
            self.term += 1
        self.at_ms += rng.randint(0, self.step_ms_max) if rng.random() < 0.995 else rng.choice([-5000, 10**9])
        own = [self._leaders_command() for _ in range(rng.choice([0, 0, 0, 1]))]
        groups = [self._group(node) for node in rng.sample(NODES, rng.randint(1, len(NODES)))]
        data = encode_batch(self.at_ms, [one for one in own if one is not None], groups)
        self.index += 1
        entry = Entry(self.index, self.term, EntryKind.COMMANDS, data)
        for replica in (self.first, self.second):
            try:
                replica.apply(entry)
            except Exception as error:
                raise Diverged(f"seed {self.seed}, entry {self.index}: {error}") from error
        self._compare_outcomes()
        if self.index % COMPARE_EVERY == 0:
            self.compare()
        if self.index % RESTORE_EVERY == 0:
            self._restore()

    def compare(self) -> None:
        """Raises:
        Diverged: the states differ.
        """
        first, second = self.first, self.second
        self._check("accounts", first.usage(), second.usage())
        self._check("deadlines", first.next_deadline_ms(), second.next_deadline_ms())
        if first.snapshot() != second.snapshot():
            states = [msgspec.msgpack.decode(replica.snapshot()) for replica in (first, second)]
            for part, (ours, theirs) in enumerate(zip(*states, strict=True)):
                self._check(f"part {part} of the state", ours, theirs)
            self._check("order in the snapshots", b"of the first", b"of the second")
        self._check("hashes", state_hashes(first), state_hashes(second))

    def _compare_outcomes(self) -> None:
        first, second = self.first, self.second
        results = first.take_outcomes()
        # A kept answer to a repeat was decoded after a restore, so its Structs are lists.
        self._check("results", *(msgspec.to_builtins(found) for found in (results, second.take_outcomes())))
        self._check("events", first.take_events(), second.take_events())
        self._check("gaps", first.take_gap(), second.take_gap())
        faults = first.take_faults()
        self._check("faults", faults, second.take_faults())
        self.count["undecodable"] += len(faults)
        for _, _, result in results:
            self.codes[result.code or "accepted"] += 1
            self.seen.add(result.body)
            self.seen.add({"fencing_token": result.index, "version": result.index})

    def _check(self, what: str, first: object, second: object) -> None:
        if first != second:
            raise Diverged(f"seed {self.seed}, entry {self.index}: {what} differ:\n{first!r:.2000}\n{second!r:.2000}")

    def _restore(self) -> None:
        """The second replica is a node that starts again with its snapshot."""
        data = self.second.snapshot()
        self.second = self._empty()
        self.second.restore(data)
        self.restores += 1
        if self.second.snapshot() != data:
            raise Diverged(f"seed {self.seed}, entry {self.index}: a restored state has another snapshot")

    @staticmethod
    def _empty() -> Replica:
        return Replica(OURS, state_machines())

    # ------------------------------------------------------------- commands

    def _group(self, node: str) -> bytes:
        rng = self.random
        if rng.random() < 0.005:
            self.sessions[node] = Session(self.sessions[node].incarnation + 1)
        session = self.sessions[node]
        if session.sent and rng.random() < 0.05:
            first_seq, commands = rng.choice(session.sent)
            return encode_group(node, session.incarnation - rng.choice([0, 0, 1]), first_seq, [], commands)
        commands = [one for _ in range(rng.randint(1, COMMANDS_PER_GROUP_MAX)) if (one := self._command(session)) is not None]
        first_seq = session.next_seq
        if rng.random() < 0.01:
            # Commands of this session got lost. They come later: until then nothing after them has an effect.
            return encode_group(node, session.incarnation, first_seq + rng.randint(1, 5), [], commands)
        session.next_seq += len(commands)
        session.sent.append((first_seq, commands))
        answered = [seq for seq in range(max(1, first_seq - 30), first_seq) if rng.random() < 0.5]
        return encode_group(node, session.incarnation, first_seq, answered, commands)

    def _command(self, session: Session) -> bytes | None:
        rng = self.random
        if session.next_seq == 1 and rng.random() < 0.5:
            return self._admit(OpenSession())
        if rng.random() < 0.06:
            command_type = rng.choice(SESSION_COMMANDS)
            if command_type is Cancel:
                return self._admit(Cancel(seq=max(0, session.next_seq - rng.randint(0, 20))))
            return self._made(command_type)
        if rng.random() < 0.01:
            return self._admit(OpenRequestSession(session=f"s{rng.randint(1, 9)}", ttl_ms=24 * 3600 * 1000))
        once = self._request_id() if rng.random() < 0.3 else None
        encoded = self._made(self._any_type(), once)
        if encoded is not None and rng.random() < 0.003:
            return self._damaged(encoded)
        return encoded

    def _leaders_command(self) -> bytes | None:
        """Leaders propose no command that can wait."""
        if self.random.random() < 0.02:
            return self._admit(SetClusterVersion(version=LATEST))
        if self.random.random() < 0.1:
            return self._admit(Skip(entry=self.index + 1 + self.random.choice([0, 1, 2**62]), reason="fuzzer", by=OURS))
        command_type = self._any_type()
        return None if can_wait(command_type) else self._made(command_type)

    def _any_type(self) -> type[Command]:
        return self.random.choices(self.first.command_types, self.weights)[0]

    def _request_id(self) -> RequestId:
        """Of few numbers, so that many are used again: repeats, or other calls with the same number."""
        rng = self.random
        session = rng.choice([*self.first.requests.sessions, "unknown"])
        number = rng.randint(1, 100)
        answered = max(0, number - 50) if rng.random() < 0.05 else 0
        digest = bytes([rng.random() < 0.1]) * DIGEST_BYTES
        return RequestId(session, number, answered, digest, rng.choice([0, 0, 1]))

    def _made(self, command_type: type[Command], once: RequestId | None = None) -> bytes | None:
        try:
            command: Command
            if command_type in TOKEN_COMMANDS:
                command = self._of_tokens(command_type)
            elif command_type in USER_COMMANDS:
                command = self._of_users(command_type)
            else:
                command = self.values.struct(command_type)
        except ValueError:
            self.count["refused by the constructor"] += 1
            return None
        return self._admit(command, once)

    def _of_tokens(self, command_type: type[Command]) -> Command:
        """Ids of tokens have a pattern, and few of them are used, so that most commands find one."""
        rng = self.random
        token_id, key = f"{rng.randint(1, 9):012x}", "0123abcd"
        if command_type is CreateToken:
            expires_in_ms = rng.choice([0, 1, 1000, 10**9])
            return CreateToken(id=token_id, name=rng.choice("abcde"), scopes=["read"], key=key, expires_in_ms=expires_in_ms)
        if command_type is RotateToken:
            return RotateToken(id=token_id, key=key, overlap_ms=rng.choice([0, 1, 1000]))
        return RevokeToken(id=token_id) if command_type is RevokeToken else NoteTokensUsed(ids=[token_id])

    def _of_users(self, command_type: type[Command]) -> Command:
        """Few names and hashes, for the same reason."""
        rng = self.random
        name, group, password_hash = rng.choice("abcdefgh"), rng.choice(GROUPS), rng.choice(["short", "longer" * 9])
        if command_type is BeginUsers:
            return BeginUsers(users=[NewUser(name, group, password_hash), NewUser("z", group, password_hash)], by=OURS)
        if command_type is CreateUser:
            return CreateUser(name=name, group=group, password_hash=password_hash, by=rng.choice(["", OURS]))
        if command_type is DeleteUser:
            return DeleteUser(name=name)
        fields = {"group": group, "active": rng.random() < 0.5, "password_hash": password_hash, "sign_out": True}
        return ChangeUser(name=name, **{field: value for field, value in fields.items() if rng.random() < 0.5})

    def _admit(self, command: Command, once: RequestId | None = None) -> bytes | None:
        try:
            encoded = self.admission.encode(command) if once is None else self.admission.encode_once(command, once)
        except Refused as refusal:
            self.count[f"refused by admission: {refusal.code}"] += 1
            return None
        self.count["admitted"] += 1
        return encoded

    def _damaged(self, encoded: bytes) -> bytes:
        """Valid msgpack that may not be a command: no admission lets it through, but a node must live with it."""
        fields = msgspec.msgpack.decode(encoded)
        name = self.random.choice(list(fields))
        fields[name] = self.random.choice([None, -1, 2**63, 0.5, [], {}, "", *(edge for edge in EDGES if abs(edge) < 2**63)])
        return msgspec.msgpack.encode(fields)
