"""A TLS connection: between the TCP transport of the event loop and a protocol that knows nothing of TLS.

`HttpConnection` gets its transport when the TCP connection is made, before the handshake. So half-open handshakes count as connections,
within the same limits, and its deadline ends a handshake that takes too long. Handshakes take turns with other input, because each costs
a millisecond or so.

The TLS of asyncio and uvloop is not used: they tell the protocol of a connection only after the handshake, do not count what a client has
not read, and wait half a minute for the client's close_notify.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any, Protocol

from dss_api.client_memory import Account
from dss_api.codec import encode_refusal
from dss_api.errors import Refused
from dss_api.http_answers import encode_answer
from dss_api.http_limits import HttpLimits
from dss_api.tls import FAILED, NOT_TLS, UNFINISHED, ServerTls, reason_of
from dss_api.turns import InputTurns

#: first byte of the first record of a handshake
HANDSHAKE_RECORD = 0x16
#: longest plaintext of a record
RECORD_BYTES_MAX = 16 * 1024
#: What the state of one connection is counted as, in addition to the connection itself.
TLS_BYTES = 32 * 1024
HTTPS_WANTED = Refused("invalid", "this port speaks HTTPS only: use https:// or wss://")


class Listener(Protocol):
    """The part of the listener that a connection uses."""

    loop: asyncio.AbstractEventLoop
    limits: HttpLimits
    input_turns: InputTurns


class FirstProtocol(Protocol):
    """The listener's protocol, `HttpConnection`."""

    address: str
    account: Account
    deadline: float

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """See the module. To the event loop it is a protocol, to `first` and to later protocols a transport."""

    def __init__(self, first: FirstProtocol, listener: Listener, tls: ServerTls) -> None:
        super().__init__()
        self._first = first
        self._protocol: Any = first
        self.address = ""
        self.account = first.account
        self._listener = listener
        self._tls = tls
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = tls.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._tcp: asyncio.Transport
        self._has_begun = False
        #: the handshake is complete
        self._is_open = False
        #: the result of the handshake has been counted
        self._is_counted = False
        self._is_closing = False
        self._has_ended_input = False
        self._has_ended_output = False
        #: the protocol does not want input now
        self._is_paused = False
        #: input waits in `InputTurns`
        self._waits = False

    # ------------------------------------------------------ for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tcp = transport  # type: ignore[assignment]
        first, listener = self._first, self._listener
        first.connection_made(self)
        if self._is_closing:
            # It was refused. That must not cost a handshake.
            self._is_counted = True
            return
        self.address = first.address
        self.account.take(TLS_BYTES)
        first.deadline = listener.loop.time() + listener.limits.handshake_timeout_s

    def data_received(self, data: bytes) -> None:
        if self._is_open and not self._waits:
            self.take_input(data)
        else:
            self._listener.input_turns.deliver(self, data)

    def eof_received(self) -> bool:
        """True: the connection is closed by `close`."""
        if not self._is_open:
            return False
        self._end_input()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closing = True
        self._listener.input_turns.forget(self)
        self._tls.closed(self)
        self._count(UNFINISHED, "")
        self._protocol.connection_lost(error)

    def pause_writing(self) -> None:
        if self._is_open:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._is_open:
            self._protocol.resume_writing()

    # -------------------------------------------------------- for `InputTurns`

    def take_input(self, data: bytes) -> None:
        """Decrypt this input."""
        if self._is_closing or self._has_ended_output:
            return
        if not self._has_begun:
            self._has_begun = True
            if data[0] != HANDSHAKE_RECORD:
                self._refuse_plain_text()
                return
        self._incoming.write(data)
        if self._is_open or self._shake_hands():
            self._read()

    def pause_input(self) -> None:
        self._waits = True
        self._tcp.pause_reading()

    def resume_input(self) -> None:
        self._waits = False
        if not self._is_paused and not self.is_closing():
            self._tcp.resume_reading()

    # ------------------------------------------------------- for the protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._ssl
        if name == "sslcontext":
            return self._ssl.context
        return self._tcp.get_extra_info(name, default)

    def peer_certificate(self) -> bytes | None:
        """See `Admitted`."""
        return self._ssl.getpeercert(binary_form=True)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_open or self._is_closing or self._has_ended_output or not data:
            return
        try:
            written = self._ssl.write(data)
            if written < len(data):
                rest = memoryview(data)[written:]
                while rest:
                    rest = rest[self._ssl.write(rest) :]
        except ssl.SSLError:
            self.abort()
            return
        self._tcp.write(self._outgoing.read())

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Send nothing more. What arrives is dropped, until the client or a deadline ends the connection."""
        if self._is_open and not self._is_closing and not self._has_ended_output:
            self._say_goodbye()
            self._tcp.write_eof()

    def close(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        if not self._is_open:
            self._tcp.abort()
            return
        if not self._has_ended_output:
            self._say_goodbye()
        self._tcp.close()

    def abort(self) -> None:
        self._is_closing = True
        self._tcp.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self._tcp.is_closing()

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def is_reading(self) -> bool:
        return not self._is_paused

    def pause_reading(self) -> None:
        self._is_paused = True
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        if not self._is_paused:
            return
        self._is_paused = False
        if self._waits or self.is_closing():
            return
        self._tcp.resume_reading()
        if self._incoming.pending:
            self._listener.loop.call_soon(self._read)

    def get_write_buffer_size(self) -> int:
        return self._tcp.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._tcp.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._tcp.set_write_buffer_limits(high, low)

    # --------------------------------------------------------------------- TLS

    def _shake_hands(self) -> bool:
        """Continue the handshake. Returns whether it is complete."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._fail(*reason_of(error))
            return False
        self._is_open = self._is_counted = True
        self._flush()
        self._tls.opened(self)
        self._first.deadline = self._listener.loop.time() + self._listener.limits.idle_timeout_s
        return True

    def _read(self) -> None:
        """Give the protocol what can be decrypted."""
        if self._is_paused or self.is_closing() or self._has_ended_output:
            return
        chunks = []
        has_ended = False
        try:
            while self._incoming.pending or self._ssl.pending():
                chunk = self._ssl.read(RECORD_BYTES_MAX)
                if not chunk:
                    has_ended = True
                    break
                chunks.append(chunk)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._fail(FAILED, reason_of(error)[1])
            return
        self._flush()
        if chunks:
            self._protocol.data_received(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if has_ended:
            self._end_input()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._tcp.write(self._outgoing.read())

    def _end_input(self) -> None:
        if self._has_ended_input or self.is_closing():
            return
        self._has_ended_input = True
        if not self._protocol.eof_received():
            self.close()

    def _say_goodbye(self) -> None:
        """Send close_notify, without waiting for the client's."""
        self._has_ended_output = True
        with contextlib.suppress(ssl.SSLError):
            self._ssl.unwrap()
        self._flush()

    def _refuse_plain_text(self) -> None:
        self._count(NOT_TLS, "plain text")
        self._tcp.write(encode_answer(encode_refusal(HTTPS_WANTED), False, False, False))
        self._is_closing = True
        self._tcp.close()

    def _fail(self, result: str, why: str) -> None:
        """End the connection after the alert that tells the client why."""
        self._count(result, why)
        self._is_closing = True
        self._flush()
        self._tcp.close()

    def _count(self, result: str, why: str) -> None:
        if not self._is_counted:
            self._is_counted = True
            self._tls.failed(self.address, result, why)
