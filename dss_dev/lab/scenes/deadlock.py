"""Two clients wait for each other."""

from __future__ import annotations

import asyncio

from dss_dev.lab.lab import Said
from dss_dev.lab.picture import Arrow, Box, Picture
from dss_dev.lab.scenes.scene import Ask, Scene, Script, Tell

A, B = "lab/A", "lab/B"
WAIT_MS = 20_000
#: a wait that was granted by now does not show
SEEN_S = 60.0


class Deadlock(Scene):
    id = "deadlock"
    title = "Deadlock"
    lead = "Each of two clients holds a lock and wants the other one. Without help, both would wait until a timeout."
    clients = ["alice", "bob"]
    steps = 5

    def __init__(self, *arguments, **options) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments, **options)
        #: lock -> client
        self._holders: dict[str, str] = {}
        #: client -> the lock that it waits for
        self._waits: dict[str, str] = {}
        self._refused = False

    @property
    def watched(self) -> dict[str, str]:
        return {"lock": B}

    def picture(self) -> Picture:
        def lock(key: str, y: int) -> Box:
            holder = self._holders.get(key, "")
            return Box(
                key, 165, y, 150, 56, f"lock {key}", [f"held by {holder}" if holder else "free"], "accent" if holder else ""
            )

        # As a ring, so that a cycle of waits is seen as one.
        bob = "refused: 409" if self._refused else self._state("bob")
        boxes = [
            lock(A, 14),
            Box("alice", 14, 126, 150, 56, "alice", [self._state("alice")], "warn" if "alice" in self._waits else ""),
            Box("bob", 316, 126, 150, 56, "bob", [bob], "bad" if self._refused else ""),
            lock(B, 238),
        ]
        arrows = [Arrow(key, holder, "", "accent") for key, holder in self._holders.items()]
        arrows += [Arrow(client, key, "waits for", "warn", True) for client, key in self._waits.items()]
        if self._refused:
            arrows.append(Arrow("bob", A, "closes the cycle", "bad", True))
        return Picture("Who holds which lock, and who waits for whom", 308, boxes, arrows)

    def _state(self, client: str) -> str:
        return f"waits for {self._waits[client]}" if client in self._waits else "runs"

    async def clean(self) -> None:
        for client, key in (("alice", A), ("bob", B), ("alice", B), ("bob", A)):
            await self._release(client, key, is_shown=False)

    async def _acquire(self, client: str, key: str, wait_ms: int = 0) -> Said:
        body = {"key": key, "client": client, "ttl_ms": 0} | ({"wait_ms": wait_ms} if wait_ms else {})
        return await self.lab.call(client, self._node_of(client), "POST", "/lock/acquire", body)

    async def _release(self, client: str, key: str, *, is_shown: bool = True) -> Said:
        body = {"key": key, "client": client}
        return await self.lab.call(client, self._node_of(client), "POST", "/lock/release", body, is_shown=is_shown)

    def _node_of(self, client: str) -> str:
        """They need not use the same node."""
        return self.lab.ids[0 if client == "alice" else 1]

    async def _wait_for_b(self) -> Said:
        """Wait again as often as the wait runs out: a person may read for longer than a call waits."""
        while True:
            said = await self._acquire("alice", B, WAIT_MS)
            if said.body.get("code") != "wait_timeout":
                return said

    async def _waits_for_b(self) -> bool:
        said = await self.lab.call(
            "lab", self._node_of("bob"), "GET", f"/lock/status?key={B.replace('/', '%2F')}", is_shown=False
        )
        return bool(said.body.get("waiters"))

    async def play(self) -> Script:
        lab = self.lab
        yield Ask(
            "Each takes a lock",
            f"alice takes {A} at {self._node_of('alice')}, bob takes {B} at {self._node_of('bob')}. The cluster keeps one "
            "state, so the node does not matter.",
            button="Take the locks",
        )
        first = await self._acquire("alice", A)
        second = await self._acquire("bob", B)
        self._holders = {A: "alice", B: "bob"}
        yield Tell(
            f"Both have a lock. Their fencing tokens are {first.body.get('fencing_token')} and "
            f"{second.body.get('fencing_token')}."
        )

        yield Ask(
            f"alice asks for {B}",
            f"alice keeps {A} and asks for {B}, which bob holds. She is ready to wait (wait_ms: {WAIT_MS}).",
            "What happens?",
            ("she is refused", "she waits in the queue of the lock", f"bob loses {B}"),
        )
        waiting = self.beside(self._wait_for_b())
        await lab.until(self._waits_for_b, "alice waits")
        self._waits["alice"] = B
        yield Tell(
            f"Her call has no answer yet. She is in the queue of {B}, and bob can release it at any time. That is no deadlock.",
            (1,),
        )

        yield Ask(
            f"bob asks for {A}",
            f"Now bob, who holds {B}, asks for {A}, and is ready to wait, too.",
            "What does bob get?",
            ("he waits, until his time is over", "he is refused, with the reason", "alice's wait ends, and bob waits"),
        )
        await lab.until(self._waits_for_b, "alice waits")
        said = await self._acquire("bob", A, WAIT_MS)
        self._refused = said.body.get("deadlock") is True
        cycle = "; ".join(
            f"{edge['client']} waits for {edge['waits_for']}, held by {edge['held_by']}" for edge in said.body.get("cycle", ())
        )
        yield Tell(
            f"{said.status} {said.body.get('code', '')}, after milliseconds: {cycle}. A request that would close a cycle of "
            "waits is refused, because no other request waits for it yet. The answer lists the cycle.",
            (1,),
        )

        yield Ask(
            f"bob releases {B}",
            f"bob gives up what he holds. That is the usual reaction: release, and start again later. alice still waits for {B}.",
            "What happens with alice's call?",
            ("it is answered: she has the lock", "nothing, she has to ask again"),
        )
        await self._release("bob", B)
        async with asyncio.timeout(SEEN_S):
            granted = await asyncio.shield(waiting)
        self._refused = False
        self._waits = {}
        self._holders[B] = "alice"
        token = granted.body.get("fencing_token")
        yield Tell(
            f"{granted.status}: her call, which has waited all the time, gets the lock with the fencing token {token}.", (0,)
        )

        yield Ask("alice releases both", "alice is done with both locks.", button="Release the locks")
        await self._release("alice", A)
        await self._release("alice", B)
        self._holders = {}
        yield Tell("Both locks are free. Clients that take their locks in the same order (A, then B) never meet this.")
