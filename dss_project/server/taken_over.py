"""A connection that a web server has taken over from the listener. Pages and WebSockets are the same for the listener."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dss_api.client_memory import Share
from dss_api.http_listener import Client
from dss_project.server.held import HeldMessages


class ServedWebSocket(Protocol):
    """The server's WebSocket, which counts what it keeps, and reports when something arrives."""

    held: HeldMessages
    #: called with everything that arrives; by default, it is taken immediately
    deliver: Callable[[bytes], None] | None
    #: where it counts what it keeps
    share: Share | None

    def take_input(self, data: bytes) -> None:
        """Parse this input."""

    def send_now(self, data: bytes, is_text: bool) -> bool:
        """See `Line`."""

    def ping(self) -> None:
        """See `Line`."""

    def recount(self) -> None:
        """See `Line`."""

    def abandon(self) -> None:
        """Free everything that has arrived. The application learns of the end when the connection is lost."""


class TakenOver:
    """See the module. What a server does in its own way is in its subclass."""

    def __init__(self, client: Client) -> None:
        self.address = client.address
        self.account = client.account
        self._input_turns = client.input_turns
        self._share = Share(client.account)
        self._on_data: Callable[[], None] = lambda: None

    @property
    def _websocket(self) -> ServedWebSocket | None:
        """None: this is a page, or a lost connection."""
        raise NotImplementedError

    def _unsent_bytes(self) -> int:
        """What the server keeps because the client has not read it."""
        raise NotImplementedError

    def _abort(self) -> None:
        """End the connection, and forget its output."""
        raise NotImplementedError

    def abort(self) -> None:
        websocket = self._websocket
        self._input_turns.forget(self)
        self._abort()
        if websocket is not None:
            websocket.abandon()

    def ping(self) -> None:
        if (websocket := self._websocket) is not None:
            websocket.ping()

    def watch(self, on_data: Callable[[], None]) -> None:
        if (websocket := self._websocket) is not None:
            self._on_data = on_data
            websocket.deliver = self._deliver
            websocket.share = self._share

    def _deliver(self, data: bytes) -> None:
        self._on_data()
        self._input_turns.deliver(self, data)

    def take_input(self, data: bytes) -> None:
        if (websocket := self._websocket) is not None:
            websocket.take_input(data)

    def pause_input(self) -> None:
        raise NotImplementedError

    def resume_input(self) -> None:
        raise NotImplementedError

    def send_now(self, data: bytes, is_text: bool) -> bool:
        websocket = self._websocket
        return websocket is not None and websocket.send_now(data, is_text)

    def message_taken(self) -> None:
        if (websocket := self._websocket) is not None:
            websocket.held.take()
            websocket.recount()

    def recount(self) -> None:
        if (websocket := self._websocket) is not None:
            websocket.recount()
        else:
            self._share.set(self._unsent_bytes())
