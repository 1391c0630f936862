"""A world that also tells its story, event by event, for people: which message was sent, lost, late or doubled, and what each node has.

It only looks: it draws no randomness and schedules nothing, so a seed has the same trace hash with and without a story. The events are
those of the lab's player (`dss_dev/lab/static/player.js`): `[µs, lane, kind, text, fields, message, quiet]`. `fields` are what has changed
in the lane. `quiet` is 1 for heartbeats and their answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sim_profile
from sim_node import SimNode
from sim_world import World

from dss_raft.core.messages import (
    AppendEntries,
    AppendReply,
    InstallSnapshot,
    PreVote,
    PreVoteReply,
    RequestVote,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
)

#: how many of a log's entries are told, from its end
LOG_SHOWN = 6
#: what `_note` calls a message that a node takes
_TAKEN = (5, 8)
FAULTS = {
    "split": "the network splits in two",
    "isolate": "a node is cut off",
    "one_way": "a link fails in one direction",
    "swizzle": "nodes are cut off one by one",
    "heal": "the network is whole again",
    "crash": "a node crashes",
    "crash_all": "all nodes crash",
    "pause": "a node is paused",
    "clock": "a clock changes its speed",
    "fsync_error": "a disk fails",
    "healed": "all faults end",
}


class StoryWorld(World):
    """See the module. `story` has the events after `run`."""

    def __init__(self, seed: int, profile: sim_profile.Profile | None = None) -> None:
        self.story: list[list[Any]] = []
        self._told: dict[str, dict[str, Any]] = {}
        #: id of a message on its way -> its number, and the message, so that the id stays its own
        self._numbers: dict[int, tuple[int, Any]] = {}
        self._sent = 0
        self._delivering: Any = None
        super().__init__(seed, self._traced, profile)

    def tell(
        self, lane: str, kind: str, text: str, fields: dict[str, Any] | None = None, message: int = 0, quiet: int = 0
    ) -> None:
        self.story.append([self.now, lane, kind, text, fields, message, quiet])

    def lanes(self) -> list[str]:
        return list(self.nodes)

    # ---- messages

    def _transmit(self, message: Any) -> None:
        text = describe(message)
        if text:
            self._sent += 1
            self._numbers[id(message)] = self._sent, message
            quiet = is_quiet(message)
            self.tell(message.sender, "send", f"{message.sender} → {message.to}: {text}", None, self._sent, quiet)
        before = self._sequence
        super()._transmit(message)
        scheduled = self._sequence - before
        if text and scheduled == 0:
            self.tell(message.sender, "lost", f"{message.sender} → {message.to}: lost ({text})", None, self._sent, quiet)
        elif text and scheduled > 1:
            self.tell(
                message.sender, "doubled", f"{message.sender} → {message.to}: will arrive twice ({text})", None, self._sent, quiet
            )

    def _deliver(self, message: Any, origin: tuple[str, int, bool]) -> None:
        self._delivering = message
        before = self._sequence
        super()._deliver(message, origin)
        if self._delivering is not None and self._sequence == before and (known := self._numbers.get(id(message))):
            text = f"{message.sender} → {message.to}: does not arrive ({describe(message)})"
            self.tell(message.to, "dropped", text, None, known[0], is_quiet(message))
        self._delivering = None

    def _note(self, kind: int, node: SimNode, value: int) -> None:
        message = self._delivering
        if message is not None and kind in _TAKEN:
            self._delivering = None
            if known := self._numbers.get(id(message)):
                text = f"{node.id} gets from {message.sender}: {describe(message)}"
                self.tell(node.id, "receive", text, None, known[0], is_quiet(message))
        super()._note(kind, node, value)

    # ---- nodes

    def _drain(self, node: SimNode) -> None:
        # A new role first, then the messages that it sends.
        self._look(node)
        super()._drain(node)
        self._look(node)

    def _look(self, node: SimNode) -> None:
        """Tell what has changed in the node."""
        now = _state(node)
        known = self._told.setdefault(node.id, {})
        changed = {name: value for name, value in now.items() if known.get(name) != value}
        if not changed:
            return
        self._told[node.id] = now
        if "role" in changed or "term" in changed:
            self.tell(node.id, "role", f"{node.id} {_role_text(now)}", changed)
        elif "log" in changed:
            first = now["log"][-1] if now["log"] else None
            self.tell(
                node.id, "log", f"{node.id} has its log up to {f'{first[0]} (term {first[1]})' if first else 'nothing'}", changed
            )
        elif "commit" in changed:
            self.tell(node.id, "commit", f"{node.id} knows that entries up to {now['commit']} are committed", changed)
        else:
            self.tell(
                node.id, "state", f"{node.id} voted for {now['vote']}" if changed.get("vote") else f"{node.id} changes", changed
            )

    def _say(self, node_id: str, text: str) -> None:
        if text.startswith(("-> ", "<- ", "applied", "durable")):
            return
        if text.startswith("-- "):
            self.tell("", "fault", FAULTS.get(text[3:], text[3:]))
        elif text == "CRASH":
            self.tell(node_id, "crash", f"{node_id} crashes", {"alive": False})
            self._told.pop(node_id, None)
        elif text.startswith("restarts"):
            node = self.nodes[node_id]
            self._told[node_id] = state = _state(node)
            self.tell(node_id, "start", f"{node_id} starts again with what is on its disk: term {node.core.term}", state)
        else:
            self.tell(node_id, "note", f"{node_id}: {text}")

    def _traced(self, line: str) -> None:
        """The world itself says only that a check has failed."""
        if "FAILED " in line:
            for node in self.nodes.values():
                if node.alive:
                    self._look(node)
            self.tell("", "violation", line.partition("FAILED ")[2])


def _state(node: SimNode) -> dict[str, Any]:
    core = node.core
    log = core.log
    first = max(log.base_index, log.last_index - LOG_SHOWN) + 1
    role = "pre-candidate" if core.is_pre_candidate else core.role.name.lower()
    return {
        "alive": True,
        "role": role,
        "term": core.term,
        "vote": core.vote,
        "commit": log.committed,
        "log": [[index, log.term(index)] for index in range(first, log.last_index + 1)],
    }


def _role_text(state: dict[str, Any]) -> str:
    term = state["term"]
    return {
        "leader": f"leads in term {term}",
        "candidate": f"asks for votes in term {term}",
        "pre-candidate": f"asks who would vote for it (its term is {term})",
    }.get(state["role"], f"follows in term {term}")


def is_quiet(message: Any) -> int:
    if isinstance(message, AppendEntries):
        return int(not message.entries)
    return int(isinstance(message, AppendReply) and message.ok and message.match == message.prev_index and message.round > 0)


def describe(message: Any) -> str:
    """A message in words; "" for those that are not of Raft itself."""
    words: dict[type, Callable[[Any], str]] = {
        PreVote: lambda it: f"would you vote for me in term {it.term}? My log ends at {_end(it)}",
        PreVoteReply: lambda it: "I would vote for you" if it.granted else f"I would not vote for you (my term is {it.term})",
        RequestVote: lambda it: f"vote for me in term {it.term}. My log ends at {_end(it)}",
        VoteReply: lambda it: (
            f"you have my vote in term {it.term}" if it.granted else f"you do not get my vote (my term is {it.term})"
        ),
        AppendEntries: _entries,
        AppendReply: lambda it: (
            f"I have all entries up to {it.match}" if it.ok else f"I refuse: my log differs before {it.prev_index + 1}"
        ),
        InstallSnapshot: lambda it: f"a snapshot up to {it.meta.index}",
        SnapshotReply: lambda it: f"the snapshot up to {it.index} is {'installed' if it.done else 'arriving'}",
        TimeoutNow: lambda it: "lead in my place",
    }
    word = words.get(type(message))
    return word(message) if word is not None else ""


def _end(message: PreVote | RequestVote) -> str:
    return f"{message.last_index} (term {message.last_term})" if message.last_index else "nothing"


def _entries(message: AppendEntries) -> str:
    after = f"after {message.prev_index} (term {message.prev_term})" if message.prev_index else "from the beginning"
    if not message.entries:
        return f"I lead in term {message.term}, and have nothing new {after}; up to {message.commit} is committed"
    first, last = message.entries[0], message.entries[-1]
    which = f"entry {first.index}" if first is last else f"entries {first.index} to {last.index}"
    return f"{which} (term {last.term}), {after}; up to {message.commit} is committed"
