"""The verdict that the lab shows. Pure.

The nodes find out that one of them is silent after a second or two. The lab knows it at once: it has ended, paused or cut off the node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: a name of a node is one
_WORD = re.compile(r"[\w-]+")
_WHAT = {"ended": "has ended", "paused": "is paused"}


def lost(facts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The nodes that the others cannot reach, each with what the lab knows about it."""
    return {
        fact["id"]: _WHAT.get(fact["process"], "is cut off") for fact in facts if fact["process"] != "running" or fact["is_cut"]
    }


def verdict_of(
    seen: Mapping[str, Any] | None, facts: Sequence[Mapping[str, Any]], cards: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """What the live view says, if it names each node that the lab knows to be lost; otherwise what the lab knows.

    Args:
        seen: the verdict of the live view; None: there is none.
        facts: of `Lab.facts`.
        cards: the members, as the live view shows them.
    """
    gone = lost(facts)
    if seen is None or gone.keys() <= set(_WORD.findall(seen["text"])):
        return seen
    voters = [card["id"] for card in cards if card["shape"] != "learner"]
    silent = {card["id"] for card in cards if card["shape"] == "silent"}
    left = sum(node_id not in gone and node_id not in silent for node_id in voters)
    needed = len(voters) // 2 + 1
    known = "; ".join(f"{node_id} {what}" for node_id, what in gone.items())
    if left < needed:
        consequence = f"{left} of {len(voters)} voters {'is' if left == 1 else 'are'} left, and a write needs {needed}."
        return {**seen, "code": "refusing_writes", "word": "REFUSING WRITES", "text": f"{known}. {consequence}"}
    leaders = {card["id"] for card in cards if card["shape"] == "leader"}
    if leaders & gone.keys():
        consequence = "It was the leader: writes wait until the others elect another one."
    else:
        consequence = "Writes work: the others are a majority."
    return {**seen, "code": "degraded", "word": "DEGRADED", "text": f"{known}. {consequence}"}
