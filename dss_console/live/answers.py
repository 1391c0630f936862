"""The event of `cluster.watch`, field by field. Pages show the same Structs, so every text is written once, here on the server."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from dss_api.answer import Part

Level = Literal["ok", "info", "warn", "bad"]
VerdictCode = Literal["healthy", "degraded", "refusing_writes", "unknown"]


class Verdict(Part):
    """The state of the cluster, as this node sees it."""

    code: VerdictCode
    #: "DEGRADED"
    word: str
    #: what it is, with which consequence
    text: str
    #: what to do; "" if nothing
    action: str
    #: since when, for people; "" if that is not known
    since: str


class Check(Part):
    """One thing that was checked, as a sentence."""

    id: str
    level: Level
    text: str
    #: a page with more about it; "" for none
    link: str


class NodeCard(Part):
    """A member."""

    id: str
    url: str
    #: "leader", "follower", "candidate", "learner", "silent", "unready"
    shape: str
    #: the shape for people, "SILENT 12 s"
    word: str
    is_self: bool
    term: int
    #: since something arrived from it
    heard_ms: int
    heard: str
    commit: int
    applied: int
    #: committed entries that it has not applied
    behind: int
    #: how much of the log it has applied, in percent
    level_percent: int
    log: str
    health: str
    #: "" unless something is wrong
    trouble: str


class LockLine(Part):
    """A key that is locked or waited for."""

    key: str
    link: str
    #: "held", "waited for", "delayed"
    state: str
    holders: str
    mode: str
    #: the highest of the holders; 0: it is not held
    fencing_token: int
    left: str
    waiters: int
    longest_wait: str


class LocksPanel(Part):
    #: keys that are held, waited for or delayed
    keys: int
    #: waiting calls
    waiting: int
    summary: str
    rows: list[LockLine]
    #: what the rows leave out; "" if nothing
    more: str


class QueueLine(Part):
    """A group of a topic."""

    id: str
    topic: str
    group: str
    link: str
    ready: int
    in_flight: int
    delayed: int
    dead: int
    waiting: int
    oldest: str
    level: Level
    #: "redis": it has messages on that engine; "redis: not known": and the numbers are without those; or ""
    engine: str


class QueuesPanel(Part):
    topics: int
    summary: str
    rows: list[QueueLine]
    more: str


class Cell(Part):
    """A node's line of a key."""

    node: str
    #: M, E, S or I; "?": the node does not answer
    state: str
    text: str


class CacheLine(Part):
    key: str
    link: str
    cells: list[Cell]


class CachePanel(Part):
    #: of all nodes that answer
    lines: int
    hit_percent: int
    summary: str
    nodes: list[str]
    rows: list[CacheLine]
    more: str


class EventLine(Part):
    id: str
    at_ms: int
    #: UTC
    at: str
    #: the node that told it
    node: str
    kind: str
    level: Level
    text: str
    #: whom and what it is about, and in which term: what is in the text, for programs
    subject: str = ""
    object: str = ""
    term: int = 0


class HolderLine(Part):
    client: str
    mode: str
    fencing_token: int
    left: str
    left_percent: int
    held: str


class WaiterLine(Part):
    position: int
    client: str
    mode: str
    waited: str
    gives_up: str
    #: why it waits: the chain of clients
    chain: str


class LockEventLine(Part):
    id: str
    at: str
    text: str


class EdgeLine(Part):
    id: str
    waiter: str
    holder: str
    key: str
    because: str


class LockDetail(Part):
    key: str
    state: str
    summary: str
    holders: list[HolderLine]
    waiters: list[WaiterLine]
    #: what happened since this node began to watch the key
    history: list[LockEventLine]
    #: who waits for whom, around this key
    edges: list[EdgeLine]
    #: the same as an SVG; "" if no request waits
    picture: str


class GroupLine(Part):
    group: str
    ready: int
    in_flight: int
    delayed: int
    dead: int
    waiting: int
    oldest: str
    rates: str


class MessageLine(Part):
    """A message that is in flight or dead. Its value is not part of the view."""

    id: str
    group: str
    msg_id: str
    key: str
    state: str
    attempt: int
    #: until when it is hidden, or why it is dead
    why: str
    history: str


class TopicDetail(Part):
    topic: str
    exists: bool
    summary: str
    settings: str
    groups: list[GroupLine]
    #: those in the log
    messages: list[MessageLine]
    #: says that there are none; "" if there are, or may be on the engine `redis`
    no_messages: str
    more: str


class NodeLine(Part):
    node: str
    state: str
    word: str
    version: int
    readable: str
    bytes: int
    age: str


class ChangeLine(Part):
    id: str
    at: str
    node: str
    text: str


class KeyDetail(Part):
    key: str
    summary: str
    lines: list[NodeLine]
    changes: list[ChangeLine]


class ClusterEvent(Part, kw_only=True):
    """What `cluster.watch` sends: first everything, then the parts that have changed, each complete."""

    kind: Literal["state", "change"]
    #: the node that sees all this
    node: str
    at_ms: int
    #: the same for people
    at: str
    verdict: Verdict | UnsetType = UNSET
    checks: list[Check] | UnsetType = UNSET
    nodes: list[NodeCard] | UnsetType = UNSET
    locks: LocksPanel | UnsetType = UNSET
    queues: QueuesPanel | UnsetType = UNSET
    cache: CachePanel | UnsetType = UNSET
    events: list[EventLine] | UnsetType = UNSET
    lock: LockDetail | UnsetType = UNSET
    topic: TopicDetail | UnsetType = UNSET
    key: KeyDetail | UnsetType = UNSET
