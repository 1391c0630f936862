"""A consumer that runs a command for each message, for `manage.py consume`.

Each of `concurrency` threads takes a message and runs the command with the value on its standard input. It extends the visibility
while the command runs, and acks when the command exits with 0. Otherwise the message goes back with a delay that doubles with each
attempt. On a stop, running commands have some time to finish. Then they are terminated, and their messages go back without counting
the attempt.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dss_api.client import CallFailed, Client, Stopped

#: How often a running command is checked.
CHECK_S = 0.2
#: Between SIGTERM and SIGKILL.
KILL_AFTER_S = 5.0
#: How long an ack or nack is retried. After that, the message comes back when its visibility timeout ends.
SETTLE_PATIENCE_S = 30.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a worker."""

    topic: str
    group: str
    command: Sequence[str]
    concurrency: int = 1
    visibility_ms: int = 15_000
    timeout_ms: int = 10_000
    #: delay after the first failure, doubled for each further one
    backoff_ms: int = 1000
    backoff_ms_max: int = 300_000
    #: how long running commands may continue after a stop
    grace_s: float = 30.0
    #: end after this many messages; 0: never
    limit: int = 0
    #: end when no message is ready
    until_empty: bool = False
    #: pass a JSON string to the command as plain text
    text: bool = False


class ConsumedMessage(msgspec.Struct):
    """The answer of `consume`."""

    msg_id: str | None
    value: msgspec.Raw
    key: str = ""
    headers: dict[str, str] | None = None
    receipt: str = ""
    attempt: int = 0


class Worker:
    """See the module.

    Args:
        make_client: a client for each thread.
        report: prints a line.
    """

    def __init__(self, options: Options, make_client: Callable[[], Client], report: Callable[[str], None]) -> None:
        self.options = options
        self.done = 0
        self.failed = 0
        self._make_client = make_client
        self._report = report
        self._stopping = threading.Event()
        self._terminate_at: float | None = None
        self._lock = threading.Lock()
        self._taken = 0
        self._pollers: list[Client] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Work until stopped, or until `limit` or `until_empty` ends it.

        Raises:
            CallFailed: a node refuses the calls of this consumer.
        """
        self._pollers = [self._make_client() for _ in range(self.options.concurrency)]
        threads = [threading.Thread(target=self._work, args=(poller,), daemon=True) for poller in self._pollers]
        for thread in threads:
            thread.start()
        for thread in threads:
            # With a timeout, the main thread can still handle signals.
            while thread.is_alive():
                thread.join(CHECK_S)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Take no more messages and let running commands finish within the grace period. A second call terminates them immediately."""
        now = time.monotonic()
        self._terminate_at = now if self._stopping.is_set() else now + self.options.grace_s
        self._stopping.set()
        for poller in self._pollers:
            poller.stop()

    def _work(self, poller: Client) -> None:
        settler = self._make_client()
        try:
            while not self._stopping.is_set() and self._may_take():
                message = self._take(poller)
                if message is None:
                    return
                if message.msg_id is not None:
                    self._handle(message, settler)
                    continue
                self._undo_take()
                if self.options.until_empty:
                    return
        except Stopped:
            pass
        except BaseException as error:
            self._error = error
            self.stop()
        finally:
            poller.close()
            settler.close()

    def _may_take(self) -> bool:
        with self._lock:
            if self.options.limit and self._taken >= self.options.limit:
                return False
            self._taken += 1
            return True

    def _undo_take(self) -> None:
        with self._lock:
            self._taken -= 1

    def _take(self, poller: Client) -> ConsumedMessage | None:
        """Consume a message. With the attempt_id, a repeat gets the message of a lost answer before its visibility timeout ends."""
        options = self.options
        call = {
            "topic": options.topic,
            "group": options.group,
            "timeout_ms": 0 if options.until_empty else options.timeout_ms,
            "visibility_ms": options.visibility_ms,
            "attempt_id": uuid.uuid4().hex,
        }
        message: ConsumedMessage = poller.post("/queue/consume", call, ConsumedMessage, wait_ms=options.timeout_ms)
        return message

    # ------------------------------------------------------------- one message

    def _handle(self, message: ConsumedMessage, settler: Client) -> None:
        named = {
            "topic": self.options.topic,
            "group": self.options.group,
            "msg_id": message.msg_id,
            "receipt": message.receipt,
        }
        code = None
        try:
            if not self._stopping.is_set():
                code = self._run_command(message, settler, named)
        except OSError as error:
            self._report(f"{message.msg_id}: the command cannot be run: {error}")
        try:
            self._settle(message, settler, named, code)
        except (CallFailed, OSError) as error:
            self._report(f"{message.msg_id}: {error}")

    def _settle(self, message: ConsumedMessage, settler: Client, named: dict[str, Any], code: int | None) -> None:
        if code == 0:
            settler.post("/queue/ack", named, dict[str, Any], patience_s=SETTLE_PATIENCE_S)
            with self._lock:
                self.done += 1
            return
        if self._must_terminate() or (code is None and self._stopping.is_set()):
            self._report(f"{message.msg_id}: given back, because this consumer is stopping")
            settler.post("/queue/nack", {**named, "silent": True}, dict[str, Any], patience_s=SETTLE_PATIENCE_S)
            return
        with self._lock:
            self.failed += 1
        delay_ms = min(self.options.backoff_ms << min(message.attempt - 1, 32), self.options.backoff_ms_max)
        ended = "could not run" if code is None else f"ended with {code}"
        self._report(f"{message.msg_id}: attempt {message.attempt} {ended}; next attempt in {delay_ms} ms")
        settler.post("/queue/nack", {**named, "delay_ms": delay_ms}, dict[str, Any], patience_s=SETTLE_PATIENCE_S)

    def _run_command(self, message: ConsumedMessage, settler: Client, named: dict[str, Any]) -> int:
        """Run the command until it ends, and extend the visibility meanwhile. Returns the exit code."""
        process = subprocess.Popen(
            list(self.options.command), stdin=subprocess.PIPE, env=self._environment(message), start_new_session=True
        )
        feeder = threading.Thread(target=_feed, args=(process, self._input(message)), daemon=True)
        feeder.start()
        extend_every_s = self.options.visibility_ms / 3000
        extend_at = time.monotonic() + extend_every_s
        killed_at: float | None = None
        while True:
            try:
                code = process.wait(CHECK_S if extend_every_s > CHECK_S else extend_every_s)
                feeder.join()
                return code
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if self._must_terminate() and (killed_at is None or now > killed_at + KILL_AFTER_S):
                _signal_group(process, signal.SIGTERM if killed_at is None else signal.SIGKILL)
                killed_at = killed_at or now
            if now >= extend_at:
                extend_at = now + extend_every_s if self._extend(settler, named) else float("inf")

    def _extend(self, settler: Client, named: dict[str, Any]) -> bool:
        """Extend the visibility. False when it is too late: another consumer may have the message."""
        call = {**named, "visibility_ms": self.options.visibility_ms}
        try:
            settler.post("/queue/extend", call, dict[str, Any], patience_s=self.options.visibility_ms / 3000)
        except CallFailed as error:
            self._report(f"{named['msg_id']}: cannot be extended: {error}")
            return False
        except OSError as error:
            self._report(f"{named['msg_id']}: {error}")
        return True

    def _must_terminate(self) -> bool:
        return self._terminate_at is not None and time.monotonic() >= self._terminate_at

    def _input(self, message: ConsumedMessage) -> bytes:
        data = bytes(message.value)
        if self.options.text and data.startswith(b'"'):
            text: str = msgspec.json.decode(data)
            return text.encode()
        return data

    def _environment(self, message: ConsumedMessage) -> dict[str, str]:
        return {
            **os.environ,
            "DSS_MESSAGE_ID": message.msg_id or "",
            "DSS_MESSAGE_TOPIC": self.options.topic,
            "DSS_MESSAGE_GROUP": self.options.group,
            "DSS_MESSAGE_KEY": message.key,
            "DSS_MESSAGE_ATTEMPT": str(message.attempt),
            "DSS_MESSAGE_HEADERS": msgspec.json.encode(message.headers or {}).decode(),
        }


def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    """Runs in its own thread: a command that does not read its input must not block the worker."""
    assert process.stdin is not None
    try:
        process.stdin.write(data)
        process.stdin.close()
    except OSError:
        # The command has closed its standard input. Its exit code decides.
        pass


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the command and the processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
