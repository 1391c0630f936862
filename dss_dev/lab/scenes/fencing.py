"""A client is paused for longer than its lease, and comes back."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from pathlib import Path

from dss_dev.lab.lab import NotReached, Said
from dss_dev.lab.picture import Arrow, Box, Picture
from dss_dev.lab.scenes.scene import Ask, Scene, Script, Tell

KEY = "lab/account"
TTL_MS = 3000
START = 100
ALICE = Path(__file__).parents[1] / "alice.py"
ANSWER_S = 30.0


class Fencing(Scene):
    id = "fencing"
    title = "Fencing"
    lead = (
        "A lock with a lease ends when its holder is silent for too long. But a paused process does not know that time has "
        "passed. Can two clients write at the same time?"
    )
    clients = ["alice", "bob", "account"]
    steps = 6

    def __init__(self, *arguments, **options) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments, **options)
        self._alice: asyncio.subprocess.Process | None = None
        self._is_paused = False
        self._tokens: dict[str, int] = {}
        #: the resource: a balance, and the highest token that it has seen
        self._balance = START
        self._highest = 0
        self._checks = True
        self._holder = ""
        self._said = ""

    @property
    def watched(self) -> dict[str, str]:
        return {"lock": KEY}

    def picture(self) -> Picture:
        alice = "paused" if self._is_paused else "a process" if self._alice else "ended" if self._tokens else "not started"

        def token(client: str) -> list[str]:
            return [f"token {self._tokens[client]}"] if client in self._tokens else []

        boxes = [
            Box("alice", 12, 42, 146, 84, "alice", [alice, *token("alice")], "warn" if self._is_paused else ""),
            Box(
                "lock",
                167,
                42,
                146,
                84,
                "lock",
                [KEY, f"held by {self._holder}" if self._holder else "free"],
                "accent" if self._holder else "",
            ),
            Box("bob", 322, 42, 146, 84, "bob", token("bob")),
            Box(
                "account",
                137,
                196,
                206,
                88,
                "account",
                [f"balance {self._balance}", f"refuses tokens < {self._highest}" if self._checks else "checks no token"],
                "" if self._checks else "warn",
            ),
        ]
        arrows = [Arrow("lock", self._holder, "", "accent")] if self._holder else []
        if self._said:
            arrows.append(Arrow("alice", "account", self._said, "bad" if "refused" in self._said else "warn"))
        return Picture("Two clients, a lock, and the account that it protects", 296, boxes, arrows)

    async def clean(self) -> None:
        await self._end_alice()
        for client in ("alice", "bob"):
            await self._release(client)

    async def close(self) -> None:
        await super().close()
        await self._end_alice()

    async def _release(self, client: str) -> None:
        body = {"key": KEY, "client": client}
        await self.lab.call(client, self.lab.ids[0], "POST", "/lock/release", body, is_shown=False)

    # ---- alice, a process

    async def _start_alice(self) -> None:
        # From the loop of the lab, whose thread lives as long as `make run`: she ends with it.
        self._alice = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(ALICE), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        await self._hear()

    async def _hear(self) -> str:
        """The next line that she says."""
        assert self._alice is not None
        assert self._alice.stdout is not None
        async with asyncio.timeout(ANSWER_S):
            line = await self._alice.stdout.readline()
        if not line:
            raise NotReached("the process of alice has ended")
        return line.decode().strip()

    def _tell_alice(self, line: str) -> None:
        assert self._alice is not None
        assert self._alice.stdin is not None
        self._alice.stdin.write(f"{line}\n".encode())

    def _signal_alice(self, number: signal.Signals) -> None:
        assert self._alice is not None
        with suppress(ProcessLookupError):
            self._alice.send_signal(number)
        self._is_paused = number == signal.SIGSTOP
        self.lab.recording.add("alice", "fault", "alice is paused (SIGSTOP)" if self._is_paused else "alice is resumed (SIGCONT)")
        self.lab.changed()

    async def _end_alice(self) -> None:
        alice, self._alice = self._alice, None
        self._is_paused = False
        if alice is not None:
            with suppress(ProcessLookupError):
                alice.kill()
            await alice.wait()

    # ---- the account

    def _write(self, who: str, balance: int, token: int) -> bool:
        """The resource's own rule: a smaller token than one that it has seen comes from an earlier holder."""
        is_accepted = not self._checks or token >= self._highest
        if is_accepted:
            self._balance = balance
            self._highest = max(self._highest, token)
        word = "accepted" if is_accepted else f"refused: {token} < {self._highest}"
        message = self.lab.recording.send(who, f"{who} writes balance {balance} with token {token}")
        self.lab.recording.add("account", "receive", f"account: {word}", message=message)
        return is_accepted

    async def _round(self) -> None:
        """alice gets the lock and reads the balance; she is paused; bob gets the lock, adds 50 and releases it."""
        self._said = ""
        await self._start_alice()
        node = self.lab.node(self.lab.ids[0])
        said = await self.lab.call("alice", node.id, "POST", "/lock/acquire", {"key": KEY, "client": "alice", "ttl_ms": TTL_MS})
        self._tokens = {"alice": said.body["fencing_token"]}
        self._holder = "alice"
        self._tell_alice(f"token {said.body['fencing_token']} balance {self._balance}")
        await self._hear()
        self.lab.changed()

    async def _bob_takes_over(self) -> tuple[bool, int]:
        self._signal_alice(signal.SIGSTOP)

        async def granted() -> Said | None:
            # A new leader gives each lease its full time again, so bob may have to ask twice.
            body = {"key": KEY, "client": "bob", "ttl_ms": 0, "wait_ms": 20_000}
            said = await self.lab.call("bob", self.lab.ids[1], "POST", "/lock/acquire", body)
            return said if said.ok else None

        said: Said = await self.lab.until(granted, "bob gets the lock")
        token = said.body["fencing_token"]
        self._holder, self._tokens["bob"] = "bob", token
        return self._write("bob", self._balance + 50, token), token

    async def _alice_goes_on(self) -> bool:
        self._signal_alice(signal.SIGCONT)
        self._tell_alice("write")
        _, _, balance, _, token = (await self._hear()).split()
        is_accepted = self._write("alice", int(balance), int(token))
        self._said = "accepted" if is_accepted else f"refused: {token} < {self._highest}"
        return is_accepted

    async def play(self) -> Script:
        self._balance = START
        yield Ask(
            "alice takes the lock",
            f"alice is a process on this machine. She locks {KEY} for {TTL_MS / 1000:g} s, reads the balance of the account, "
            f"{START}, and wants to add 10. The lock's answer has a fencing token: a number that only grows.",
            button="Start alice",
        )
        await self._round()
        mine = self._tokens["alice"]
        yield Tell(f"alice has the lock with token {mine}. She has computed {START} + 10, and has not written it yet.")

        yield Ask(
            "alice is paused, bob asks",
            "alice gets SIGSTOP, as in a long garbage collection, or on a laptop that is closed. bob asks for the same lock "
            "and waits.",
            "When does bob get it?",
            ("never, while alice has it", f"when alice's lease of {TTL_MS / 1000:g} s is over", "immediately"),
        )
        _, token = await self._bob_takes_over()
        yield Tell(
            f"The lease was not renewed, so it ended. bob has the lock with token {token}, which is greater than {mine}. He has "
            f"added 50: the balance is {self._balance}, and the account has seen token {token}.",
            (1,),
        )

        yield Ask(
            "alice goes on",
            f"alice gets SIGCONT. She does not know that time has passed, and writes {START + 10} with her token {mine}.",
            "Does the account accept it?",
            ("yes, she had the lock", f"no, {mine} is smaller than {token}"),
        )
        is_accepted = await self._alice_goes_on()
        yield Tell(
            f"{'Accepted' if is_accepted else 'Refused'}. The balance is {self._balance}. The lock service cannot stop a client "
            "that believes it holds a lock. The resource can, with one comparison: refuse tokens below the highest that was "
            "seen.",
            (1,),
        )

        yield Ask(
            "Again, without the check",
            "The account forgets its check. alice takes the lock and reads the balance again.",
            button="Start again without the check",
        )
        await self._end_alice()
        await self._release("bob")
        self._checks, self._balance, self._highest = False, START, 0
        await self._round()
        yield Tell(f"alice has the lock with token {self._tokens['alice']}, and the balance is {self._balance} again.")

        yield Ask(
            "alice is paused, bob adds 50",
            f"The same again: alice is paused, her lease ends, and bob adds 50 to {START}.",
            button="Pause alice",
        )
        await self._bob_takes_over()
        yield Tell(f"The balance is {self._balance}.")

        yield Ask(
            "alice goes on, unchecked",
            f"alice adds 10 to the {START} that she has read. Together with bob's 50, the balance should be {START + 60}.",
            "What is the balance then?",
            (str(START + 60), str(START + 50), str(START + 10)),
        )
        await self._alice_goes_on()
        wrong = self._balance
        await self._end_alice()
        await self._release("bob")
        self._holder = ""
        yield Tell(
            f"{wrong}: bob's 50 are lost, and no client got an error. A lock with a lease needs the check at the resource.", (2,)
        )
