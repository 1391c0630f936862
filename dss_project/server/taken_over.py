"""A connection that a web server has taken over from the listener: what both servers do in the same way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dss_api.client_memory import Share
from dss_api.http_listener import Client
from dss_api.liveness import Line
from dss_project.server.held import HeldMessages


class ServedWebSocket:
    """A base of the server's WebSocket: it counts what it keeps, and reports when something arrives. See `Line`."""

    #: takes everything that arrives; None: it is parsed immediately
    deliver: Callable[[bytes], None] | None = None
    #: where it counts what it keeps
    share: Share | None = None
    #: nothing that arrives is parsed any more
    _has_ended = False
    _on_data: Callable[[], None]
    held: HeldMessages

    def watch(self, on_data: Callable[[], None]) -> None:
        self._on_data = on_data

    def message_taken(self) -> None:
        self.held.take()
        self.recount()

    def arrived(self, data: bytes) -> None:
        """Something has arrived."""
        if self.deliver is None:
            self.take_input(data)
        else:
            self._on_data()
            self.deliver(data)

    def take_input(self, data: bytes) -> None:
        """Parse this input."""
        if not self._has_ended:
            self.parse(data)
            self.recount()

    def recount(self) -> None:
        if self.share is not None:
            self.share.set(self.held.bytes + self.bytes_kept())

    def abandon(self) -> None:
        """Free everything that has arrived. The application learns of the end when the connection is lost."""
        self.forget_input()
        self.held.clear()

    def parse(self, data: bytes) -> None:
        raise NotImplementedError

    def bytes_kept(self) -> int:
        """Input that is not parsed, and output that the client has not read."""
        raise NotImplementedError

    def forget_input(self) -> None:
        """Free what has arrived, and parse nothing more."""
        raise NotImplementedError

    def send_now(self, data: bytes, is_text: bool) -> bool:
        raise NotImplementedError

    def ping(self) -> None:
        raise NotImplementedError


class TakenOver:
    """See the module. What a server does in its own way is in its subclass."""

    def __init__(self, client: Client) -> None:
        self.address = client.address
        self.account = client.account
        self._input_turns = client.input_turns
        self._share = Share(client.account)

    @property
    def _websocket(self) -> ServedWebSocket | None:
        """None: this is a page, or a lost connection."""
        raise NotImplementedError

    def open_websocket(self) -> Line | None:
        """See `HandedOver`."""
        websocket = self._websocket
        if websocket is not None:
            websocket.deliver = partial(self._input_turns.deliver, self)
            websocket.share = self._share
        return websocket

    def take_input(self, data: bytes) -> None:
        if (websocket := self._websocket) is not None:
            websocket.take_input(data)

    def recount(self) -> None:
        if (websocket := self._websocket) is not None:
            websocket.recount()
        else:
            self._share.set(self._unsent_bytes())

    def abort(self) -> None:
        websocket = self._websocket
        self._input_turns.forget(self)
        self._abort()
        if websocket is not None:
            websocket.abandon()

    def pause_input(self) -> None:
        raise NotImplementedError

    def resume_input(self) -> None:
        raise NotImplementedError

    def _unsent_bytes(self) -> int:
        """What the client of a page has not read."""
        raise NotImplementedError

    def _abort(self) -> None:
        """End the connection, and forget its output."""
        raise NotImplementedError
