"""Which primary of a Cluster has each slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SLOTS = 16_384


class SlotTable:
    """What a node of the Cluster knows.

    Attributes:
        owners: the address of the primary of each slot; empty: none is known.
        nodes: the addresses of all primaries and replicas.

    Args:
        answer: of `CLUSTER SLOTS`.
        asked: the address of the node that was asked. One that does not know its own host leaves it out.

    Raises:
        ValueError, TypeError, IndexError: the answer is of another form.
    """

    def __init__(self, answer: Sequence[Any], asked: str) -> None:
        self.owners = [""] * SLOTS
        self.nodes: set[str] = set()
        for first, last, *nodes in answer:
            if not 0 <= first <= last < SLOTS:
                raise ValueError(f"no slots from {first} to {last}")
            addresses = [address(node[0], node[1], asked) for node in nodes]
            self.nodes.update(addresses)
            self.owners[first : last + 1] = [addresses[0]] * (last + 1 - first)
        if not self.nodes:
            raise ValueError("no node has a slot")

    @property
    def primaries(self) -> list[str]:
        """The addresses of all primaries that have slots."""
        return sorted({*self.owners} - {""})

    @property
    def missing(self) -> int:
        """Slots without a primary."""
        return self.owners.count("")


def address(host: bytes | str | None, port: int, asked: str) -> str:
    """The address of a node, as the one at `asked` names it."""
    text = host.decode() if isinstance(host, bytes) else host
    return f"{text if text and text != '?' else host_port(asked)[0]}:{int(port)}"


def host_port(text: str) -> tuple[str, int]:
    """The parts of an address."""
    host, _, port = text.rpartition(":")
    return host, int(port)
