"""Locks, queues and cache lines as this node sees them, in a bounded number of rows. Everything is computed from its own state, and from
what it has read from the engine `redis` of topics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from dss_api.durations import duration_text
from dss_cache.core.directory import Directory
from dss_cache.core.lines import Lines
from dss_console.live.answers import (
    CacheLine,
    CachePanel,
    Cell,
    ChangeLine,
    EdgeLine,
    GroupLine,
    HolderLine,
    KeyDetail,
    LockDetail,
    LockEventLine,
    LockLine,
    LocksPanel,
    MessageLine,
    NodeLine,
    QueueLine,
    QueuesPanel,
    TopicDetail,
    WaiterLine,
)
from dss_console.live.messages import KEYS_PER_LEASE_MAX, Report
from dss_console.live.texts import count, key_link, lock_link, number, time_of_day, topic_link
from dss_locks import picture
from dss_locks.core import inspection as lock_inspection
from dss_locks.core.state import LockChanged
from dss_locks.core.table import LockTable
from dss_queue.both_engines import add_numbers
from dss_queue.core import inspection as queue_inspection
from dss_queue.core.broker import Broker
from dss_queue.core.records import message_id
from dss_queue.engine_numbers import OnEngine

#: Rows of a list on the cluster page, and on the list's own page.
ROWS_FEW = 8
ROWS_MANY = 100
#: Waiting calls among which the panel looks for keys and the longest wait; they are in order of arrival.
WAITERS_SCANNED_MAX = 500
#: Groups of topics that are compared for the first rows.
GROUPS_SCANNED_MAX = 200
#: Rows of each list on the page of a lock, topic or key.
DETAIL_ROWS_MAX = 50
#: Earlier attempts of a message that are shown.
HISTORY_MAX = 5
#: Edges in the picture around a lock, those of the whole graph among which they are looked for, and the places in queues that the graph
#: is made of. They are those of the first calls, which have waited longest.
EDGES_MAX = 60
EDGES_SCANNED_MAX = 1_000
PLACES_SCANNED_MAX = 1_000
#: Steps of a waiting call's chain.
CHAIN_STEPS_MAX = 5
NO_MESSAGES = "No message is in flight or dead."
#: What stands beside a topic with messages on the engine `redis`; the second if its numbers are without those.
ON_ENGINE, NOT_KNOWN = "redis", "redis: not known"
MESI = {"M": "modified: written here, not yet written back", "E": "exclusive: alone and clean", "S": "shared", "I": "no line"}


# ------------------------------------------------------------------------ locks


def longest_wait(table: LockTable, now_ms: int) -> tuple[str, str, int] | None:
    """(client, key, ms) of the call that has waited longest, among the first ones."""
    callers = islice(table.waiters.by_origin.values(), WAITERS_SCANNED_MAX)
    oldest = min(callers, key=lambda caller: caller.since_ms, default=None)
    if oldest is None:
        return None
    return oldest.waiter.client, oldest.waiter.keys[0], max(0, now_ms - oldest.since_ms)


def locks_panel(table: LockTable, now_ms: int, rows_max: int) -> LocksPanel:
    keys: dict[str, None] = {}
    for caller in islice(table.waiters.by_origin.values(), WAITERS_SCANNED_MAX):
        if len(keys) >= rows_max:
            break
        keys.update(dict.fromkeys(caller.waiter.keys))
    for key in table.locks:
        if len(keys) >= rows_max:
            break
        keys.setdefault(key)
    shown = list(keys)[:rows_max]
    total, waiting = len(table.locks), len(table.waiters.by_origin)
    wait = longest_wait(table, now_ms)
    summary = "No lock is held." if not total else f"{count(total, 'key')} held or waited for, {count(waiting, 'call')} waiting"
    if wait is not None:
        summary += f", the longest for {duration_text(wait[2] // 1000 * 1000)}"
    more = "" if total <= len(shown) else f"{number(total - len(shown))} more: search in the admin"
    return LocksPanel(total, waiting, summary, [_lock_line(table, key, now_ms) for key in shown], more)


def _lock_line(table: LockTable, key: str, now_ms: int) -> LockLine:
    row = lock_inspection.status(table, key, now_ms, rows_max=3)
    waits = [waiter["age_ms"] for waiter in row["waiters"]]
    left = row["holders"][0]["expires_in_ms"] if row["holders"] else None
    return LockLine(
        key=key,
        link=lock_link(key),
        state=_lock_state(row),
        holders=_names([hold["client"] for hold in row["holders"]], row["holder_count"]),
        mode=row["mode"] or "",
        fencing_token=max((hold["fencing_token"] for hold in row["holders"]), default=0),
        left=_left(left) if row["holders"] else "",
        waiters=row["waiter_count"],
        longest_wait=duration_text(max(waits) // 1000 * 1000) if waits else "",
    )


def _lock_state(row: Mapping[str, Any]) -> str:
    if row["holders"]:
        return "held"
    return "delayed" if row["delay"] else "waited for" if row["waiters"] else "free"


def _left(ms: int | None) -> str:
    return "until released" if ms is None else duration_text(ms // 1000 * 1000)


def _names(names: Sequence[str], total: int) -> str:
    shown = ", ".join(names[:2])
    return f"{shown} and {total - 2} more" if total > 2 and len(names) >= 2 else shown


def waits_for(table: LockTable) -> dict[str, Any]:
    """The part of the waits-for graph in which `lock_detail` looks: its size does not depend on the number of waiting calls."""
    return lock_inspection.graph(table, EDGES_SCANNED_MAX, PLACES_SCANNED_MAX)


def lock_detail(
    table: LockTable, key: str, now_ms: int, history: Iterable[tuple[int, LockChanged]], whole: dict[str, Any]
) -> LockDetail:
    """Holders, queue, history, and who waits for whom around the key.

    Args:
        whole: of `waits_for`.
    """
    row = lock_inspection.status(table, key, now_ms, rows_max=DETAIL_ROWS_MAX)
    graph = _around(whole, row)
    state = _lock_state(row)
    return LockDetail(
        key=key,
        state=state,
        summary=_lock_summary(row, state),
        holders=[
            HolderLine(
                client=hold["client"],
                mode=hold["mode"],
                fencing_token=hold["fencing_token"],
                left=_left(hold["expires_in_ms"]),
                left_percent=_share(hold["expires_in_ms"], hold["ttl_ms"]),
                held=duration_text(hold["age_ms"] // 1000 * 1000),
            )
            for hold in row["holders"]
        ],
        waiters=[
            WaiterLine(
                position=waiter["position"],
                client=waiter["client"],
                mode=waiter["mode"],
                waited=duration_text(waiter["age_ms"] // 1000 * 1000),
                gives_up=duration_text(waiter["gives_up_in_ms"] // 1000 * 1000),
                chain=_chain(table, waiter["client"], waiter["place"]),
            )
            for waiter in row["waiters"]
        ],
        history=[_lock_event(at_ms, number_, event) for number_, (at_ms, event) in enumerate(history)][::-1],
        edges=[
            EdgeLine(
                id=f"{edge['from']} {edge['to']} {edge['key']}",
                waiter=edge["from"],
                holder=edge["to"],
                key=edge["key"],
                because="holds it" if edge["because"] == "holds" else "is ahead in the queue",
            )
            for edge in graph["edges"]
        ],
        picture=picture.draw(graph) if graph["edges"] else "",
    )


def _lock_summary(row: Mapping[str, Any], state: str) -> str:
    if state == "held":
        who = _names([hold["client"] for hold in row["holders"]], row["holder_count"])
        token = max(hold["fencing_token"] for hold in row["holders"])
        waits = f"{count(row['waiter_count'], 'request')} waiting" if row["waiter_count"] else "no request waits"
        return f"Held {row['mode']} by {who}, fencing token {token}; {waits}."
    if state == "delayed":
        delay = row["delay"]
        return f"No client holds it. {delay['lost_by']} lost it: new requests wait for {duration_text(delay['left_ms'])} more."
    if state == "waited for":
        return f"No client holds it yet; {count(row['waiter_count'], 'request')} waiting."
    return "No client holds it, and no request waits for it."


def _share(left: int | None, whole: int) -> int:
    return 100 if left is None or whole <= 0 else max(0, min(100, left * 100 // whole))


def _chain(table: LockTable, client: str, rank: int) -> str:
    waiter = next(one for one in table.waiters.of_client[client] if one.rank == rank)
    steps = lock_inspection.chain(table, waiter, CHAIN_STEPS_MAX)
    shown = ", which waits for ".join(f"{step['held_by']} ({step['waits_for']})" for step in steps)
    return f"waits for {shown}" if shown else ""


def _lock_event(at_ms: int, number_: int, event: LockChanged) -> LockEventLine:
    text = f"{event.client} {event.kind.replace('_', ' ')}"
    if event.fencing_token:
        text += f", token {event.fencing_token}"
    if event.reason:
        text += f" ({event.reason})"
    return LockEventLine(f"{event.index}-{event.kind}-{event.client}-{event.place}", time_of_day(at_ms), text)


def _around(graph: dict[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the waits-for graph that is connected with the clients of this key, in both directions, nearest first."""
    at: dict[str, list[int]] = {}
    for number_, edge in enumerate(graph["edges"]):
        at.setdefault(edge["from"], []).append(number_)
        at.setdefault(edge["to"], []).append(number_)
    reached = dict.fromkeys(one["client"] for one in (*row["holders"], *row["waiters"]))
    left = deque(reached)
    found: set[int] = set()
    while left and len(found) < EDGES_MAX:
        for number_ in at.get(left.popleft(), ()):
            if len(found) >= EDGES_MAX:
                break
            found.add(number_)
            edge = graph["edges"][number_]
            for client in (edge["from"], edge["to"]):
                if client not in reached:
                    reached[client] = None
                    left.append(client)
    edges = [graph["edges"][number_] for number_ in sorted(found)]
    clients = {edge[end] for edge in edges for end in ("from", "to")}
    nodes = [node for node in graph["nodes"] if node["client"] in clients]
    return {"nodes": nodes, "edges": edges, "truncated": graph["truncated"]}


# ----------------------------------------------------------------------- queues


def dead_letters(broker: Broker, on_engine: OnEngine) -> list[tuple[str, str, int]]:
    """(topic, group, count) of the groups that have dead letters, the most first, among the first groups."""
    found = []
    for topic in islice(broker.topics.values(), GROUPS_SCANNED_MAX):
        numbers = None if topic.engine is None else on_engine(topic)
        for name, group in topic.groups.items():
            there = None if numbers is None else numbers.groups.get(name)
            dead = len(group.dead) + (0 if there is None else there.dead)
            if dead:
                found.append((topic.name, name, dead))
    return sorted(found, key=lambda one: -one[2])


def topics_on_engine(broker: Broker, on_engine: OnEngine) -> tuple[int, int]:
    """How many topics have messages on the engine, and of how many of them what is there is not known."""
    are_known = [on_engine(topic) is not None for topic in broker.topics.values() if topic.engine is not None]
    return len(are_known), are_known.count(False)


def queues_panel(broker: Broker, on_engine: OnEngine, now_ms: int, rows_max: int) -> QueuesPanel:
    rows = list(islice(queue_inspection.backlogs(broker, now_ms), GROUPS_SCANNED_MAX))
    for row in rows:
        _add_on_engine(row, broker, on_engine)
    rows.sort(key=lambda row: (-row["dead"], -row["in_flight"] - row["ready"], row["topic"], row["group"]))
    ready, dead = sum(row["ready"] for row in rows), sum(row["dead"] for row in rows)
    total = len(broker.topics)
    summary = f"{count(total, 'topic')}, {number(ready)} ready, {number(dead)} dead" if total else "There is no topic."
    elsewhere, unknown = topics_on_engine(broker, on_engine)
    if elsewhere:
        summary += f"; {count(elsewhere, 'topic is', 'topics are')} on the engine redis"
    if unknown:
        summary += f"; the numbers of {count(unknown, 'topic')} there are not known now, and not counted"
    shown = rows[:rows_max]
    is_cut = len(rows) > len(shown) or len(rows) == GROUPS_SCANNED_MAX
    return QueuesPanel(total, summary, [_queue_line(row) for row in shown], "The rest is in the admin." if is_cut else "")


def _add_on_engine(row: dict[str, Any], broker: Broker, on_engine: OnEngine) -> None:
    """Add to a row of a topic or group what the engine has of it, and say that it is there."""
    topic = broker.topics[row["topic"]]
    row["engine"] = ""
    if topic.engine is None:
        return
    numbers = on_engine(topic)
    row["engine"] = ON_ENGINE if numbers else NOT_KNOWN
    if numbers is None:
        return
    if not row["group"]:
        row["ready"] += numbers.topic.messages
        row["oldest_age_ms"] = max(row["oldest_age_ms"], numbers.topic.oldest_age_ms)
    group = numbers.groups.get(row["group"])
    if group is not None:
        for name in ("ready", "delayed", "in_flight", "dead"):
            row[name] += getattr(group, name)
        row["waiting"] += group.waiters
        row["oldest_age_ms"] = max(row["oldest_age_ms"], group.oldest_age_ms)


def _queue_line(row: Mapping[str, Any]) -> QueueLine:
    return QueueLine(
        id=f"{row['topic']}/{row['group']}",
        topic=row["topic"],
        group=row["group"],
        link=topic_link(row["topic"]),
        ready=row["ready"],
        in_flight=row["in_flight"],
        delayed=row["delayed"],
        dead=row["dead"],
        waiting=row["waiting"],
        oldest=duration_text(row["oldest_age_ms"] // 1000 * 1000) if row["oldest_age_ms"] else "",
        level="warn" if row["dead"] else "ok",
        engine=row["engine"],
    )


def topic_detail(broker: Broker, on_engine: OnEngine, name: str, now_ms: int) -> TopicDetail:
    """The groups of a topic, and their messages that are in flight or dead in the log, without values."""
    stats = queue_inspection.stats(broker, name, now_ms)
    if not stats["exists"]:
        none = "There is no such topic. The first publish or consume makes it."
        return TopicDetail(name, False, none, "", [], [], NO_MESSAGES, "")
    is_on_engine = (topic := broker.topics[name]).engine is not None
    numbers = on_engine(topic) if is_on_engine else None
    if numbers is not None:
        add_numbers(stats, numbers.topic, numbers.groups.values())
    groups = [
        GroupLine(
            group=group["group"],
            ready=group["ready"],
            in_flight=group["in_flight"],
            delayed=group["delayed"],
            dead=group["dead"],
            waiting=group["waiters"],
            oldest=duration_text(group["oldest_age_ms"] // 1000 * 1000) if group["oldest_age_ms"] else "",
            rates=f"{group['deliver_per_second']:.1f} delivered and {group['ack_per_second']:.1f} acknowledged each second",
        )
        for group in stats["groups"][:DETAIL_ROWS_MAX]
    ]
    messages, is_cut = _messages(broker, name, now_ms)
    settings = ", ".join(f"{setting} {value}" for setting, value in stats["settings"].items() if value is not None)
    retained, dead = count(stats["messages"], "message"), count(stats["dead"], "dead letter")
    summary = f"{retained} retained, {number(stats['published'])} published, {dead}."
    more = f"Only the first {DETAIL_ROWS_MAX} are shown." if is_cut else ""
    if is_on_engine:
        moving = stats.get("moving_from")
        where = f"It moves from the engine {moving}." if moving else "It is on the engine redis."
        summary = f"{where} {summary}" if numbers else f"{where} What redis has is not known now. In the log: {summary}"
        more = f"{more} Messages on redis are listed in the admin.".lstrip()
    return TopicDetail(name, True, summary, settings, groups, messages, "" if messages or is_on_engine else NO_MESSAGES, more)


def _messages(broker: Broker, name: str, now_ms: int) -> tuple[list[MessageLine], bool]:
    lines: list[MessageLine] = []
    for group in broker.topics[name].groups.values():
        for dead in islice(group.dead.values(), DETAIL_ROWS_MAX + 1 - len(lines)):
            row = queue_inspection.dead_line(dead)
            lines.append(_message_line(group.name, row, row["reason"].replace("_", " ")))
        for delivery in islice(group.in_flight.values(), max(0, DETAIL_ROWS_MAX + 1 - len(lines))):
            row = {
                "msg_id": message_id(delivery.message.number),
                "key": delivery.message.key,
                "state": "in flight",
                "attempt": delivery.attempt,
                "history": queue_inspection.history_lines(delivery.history),
            }
            left = duration_text(max(0, delivery.due_ms - now_ms) // 1000 * 1000)
            lines.append(_message_line(group.name, row, f"at {delivery.handout.origin.node}, {left} left"))
    return lines[:DETAIL_ROWS_MAX], len(lines) > DETAIL_ROWS_MAX


def _message_line(group: str, row: Mapping[str, Any], why: str) -> MessageLine:
    history = "; ".join(
        f"attempt {ending['attempt']} at {ending['node']}: {ending['reason'].replace('_', ' ')} {time_of_day(ending['ended_ms'])}"
        for ending in row["history"][-HISTORY_MAX:]
    )
    return MessageLine(
        id=f"{group} {row['msg_id']}",
        group=group,
        msg_id=row["msg_id"],
        key=row["key"] or "",
        state=row["state"],
        attempt=row["attempt"],
        why=why,
        history=history,
    )


# ------------------------------------------------------------------------ cache


def recent_keys(lines: Lines, limit: int) -> list[str]:
    """The most recently used keys of this node."""
    return [key for key, _ in islice(lines.recent_first(), min(limit, KEYS_PER_LEASE_MAX))]


def cache_panel(reports: Mapping[str, Report | None], keys: Sequence[str], total_keys: int) -> CachePanel:
    """The lines of these keys on every node.

    Args:
        reports: of every member, in order; None: it does not answer.
        total_keys: keys in the directory.
    """
    known = [report for report in reports.values() if report is not None]
    hits, misses = sum(report.hits for report in known), sum(report.misses for report in known)
    lines = sum(report.lines for report in known)
    percent = hits * 100 // (hits + misses) if hits + misses else 0
    rate = f"{percent} % of {number(hits + misses)} reads were hits" if hits + misses else "no reads yet"
    summary = f"{count(lines, 'line')} on {count(len(known), 'node')}, {count(total_keys, 'key')} in the directory; {rate}"
    rows = [CacheLine(key, key_link(key), [_cell(node, report, key) for node, report in reports.items()]) for key in keys]
    more = "" if rows else "No key has a line on this node."
    return CachePanel(lines, percent, summary, list(reports), rows, more)


def _cell(node: str, report: Report | None, key: str) -> Cell:
    if report is None:
        return Cell(node, "?", f"{node}: no answer")
    line = report.line_states.get(key)
    if line is None:
        return Cell(node, "I", f"{node}: no line")
    return Cell(node, line.state, f"{node}: {MESI.get(line.state, line.state)}, version {line.version}")


def key_detail(directory: Directory, key: str, reports: Mapping[str, Report | None]) -> KeyDetail:
    """A key's line on every node, and how the lines changed."""
    record = directory.records.get(key)
    if record is None:
        summary = "The directory does not know this key."
    elif record.absent:
        summary = f"Deleted or expired at version {record.version}."
    else:
        where = f"dirty: {record.owner} writes it back" if record.dirty else "clean: the backing store has it"
        summary = f"Version {record.version}, {where}."
    changes = [
        (one.at_ms, node, one, order)
        for node, report in reports.items()
        if report is not None
        for order, one in enumerate(report.changes)
    ]
    changes.sort(key=lambda change: (-change[0], change[3]))
    return KeyDetail(
        key=key,
        summary=summary,
        lines=[_node_line(node, report, key) for node, report in reports.items()],
        changes=[
            ChangeLine(
                id=f"{node} {at_ms} {one.old}{one.new} {one.version} {order}",
                at=time_of_day(at_ms),
                node=node,
                text=f"{one.old} → {one.new}, version {one.version}: {one.why}",
            )
            for at_ms, node, one, order in changes[:DETAIL_ROWS_MAX]
        ],
    )


def _node_line(node: str, report: Report | None, key: str) -> NodeLine:
    if report is None:
        return NodeLine(node, "?", "no answer", 0, "", 0, "")
    line = report.line_states.get(key)
    if line is None:
        return NodeLine(node, "I", MESI["I"], 0, "", 0, "")
    readable = "yes" if line.readable else "not yet"
    age = duration_text(line.age_ms // 1000 * 1000)
    return NodeLine(node, line.state, MESI.get(line.state, line.state), line.version, readable, line.bytes, age)
