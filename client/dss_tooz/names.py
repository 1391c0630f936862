"""Names of locks and cache keys. Ids of tooz are bytes; here they are percent-encoded."""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes


def to_text(id: bytes | str) -> str:
    return quote(id, safe="")


def to_bytes(text: str) -> bytes:
    return unquote_to_bytes(text)


class Names:
    """Of one namespace."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"tooz/{quote(namespace, safe='')}"

    @property
    def groups(self) -> str:
        """The cached list of groups."""
        return f"{self._prefix}/groups"

    def lock(self, name: bytes | str) -> str:
        return f"{self._prefix}/lock/{to_text(name)}"

    def leader(self, group: bytes | str) -> str:
        return f"{self._prefix}/leader/{to_text(group)}"

    def members(self, group: bytes | str) -> str:
        """What the locks of a group's members begin with, and the cached values with their capabilities."""
        return f"{self._prefix}/member/{to_text(group)}/"

    def member(self, group: bytes | str, member: bytes | str) -> str:
        return self.members(group) + to_text(member)

    def client(self, member: bytes | str, run: str) -> str:
        """Of a member's session: one start of a coordinator."""
        return f"{self._prefix}/{to_text(member)}/{run}"


def member_of(client: str) -> bytes:
    """The member whose session this is."""
    return to_bytes(client.split("/")[-2])
