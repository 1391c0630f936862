"""The web server of the lab: a page, its files, a stream of what changes, and calls. An ASGI application without Django."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import uvicorn

from dss_api.security_headers import PAGE_HEADERS
from dss_dev.checkouts import ROOT
from dss_dev.lab.access import Access
from dss_dev.lab.lab import Lab
from dss_dev.lab.scenes import SCENES
from dss_dev.lab.scenes.scene import Scene
from dss_dev.local_cluster import NotReady

BODY_MAX = 4096
#: changes within this time are sent together
BATCH_S = 0.15
#: an unchanged state is sent again after this time, so that a page notices when the lab has gone
ALIVE_S = 2.0

HERE = Path(__file__).parent
CONSOLE = ROOT / "dss_console" / "static" / "dss"
#: path -> file and type; nothing else is served
FILES: dict[str, tuple[Path, str]] = {
    "/": (HERE / "static" / "lab.html", "text/html; charset=utf-8"),
    "/static/dss/icon.svg": (CONSOLE / "icon.svg", "image/svg+xml"),
    "/static/dss/live.css": (CONSOLE / "live.css", "text/css; charset=utf-8"),
    "/static/dss/fill.js": (CONSOLE / "fill.js", "text/javascript; charset=utf-8"),
    **{
        f"/static/lab/{name}": (HERE / "static" / name, f"text/{'css' if name.endswith('css') else 'javascript'}; charset=utf-8")
        for name in ("lab.css", "lab.js", "stage.js", "player.js", "player.css")
    },
}
STORIES = HERE / "stories"
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Refused(Exception):
    """An answer that is an error: status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a call. A field that is not known here, for example a process id, is refused."""


class Enter(_Strict):
    token: str


class Act(_Strict):
    """`node` is the name of a node of this `make run`."""

    action: Literal["kill", "pause", "resume", "start", "cut", "heal"]
    node: str


class Begin(_Strict):
    scene: str


class Step(_Strict):
    #: the number of the option that was chosen, from 0
    choice: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Site:
    """See the module."""

    def __init__(self, lab: Lab, access: Access, entered: Callable[[], None]) -> None:
        self.lab = lab
        self.access = access
        self._entered = entered
        self.scene: Scene | None = None
        self._changing = asyncio.Lock()
        #: removes what the scenes that were left have made in the cluster
        self._tidying: asyncio.Task[None] | None = None
        #: why the scene that was left is still in the cluster, for the page without a scene; "": it is not
        self.left_over = ""

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            await self._answer(scope["method"], scope["path"], headers, receive, send)
        except Refused as refusal:
            await _reply(send, refusal.status, _json({"detail": str(refusal)}))

    async def _answer(self, method: str, path: str, headers: dict[str, str], receive: Receive, send: Send) -> None:
        if not self.access.has_own_host(headers):
            raise Refused(403, "The Host of this call is not the lab's")
        if method == "GET" and path in FILES:
            file, kind = FILES[path]
            await _reply(send, 200, file.read_bytes(), kind)
            return
        if method == "POST" and not self.access.has_own_origin(headers):
            raise Refused(403, "The Origin of this call is not the lab's")
        if (method, path) == ("POST", "/enter"):
            await self._enter(await _body(receive, Enter), send)
            return
        if not self.access.is_known(headers):
            raise Refused(403, "Open the lab with the link that “make run” prints")
        if (method, path) == ("GET", "/events"):
            await self._stream(receive, send)
        elif method == "GET" and path.startswith("/story/"):
            await _reply(send, 200, self._story(path.removeprefix("/story/")), "application/jsonl")
        elif (method, path) == ("POST", "/act"):
            await self._act(await _body(receive, Act))
            await _reply(send, 200, b"{}")
        elif (method, path) == ("POST", "/scene"):
            await self._begin((await _body(receive, Begin)).scene)
            await _reply(send, 200, b"{}")
        elif (method, path) == ("POST", "/leave"):
            await self.leave()
            await _reply(send, 200, b"{}")
        elif (method, path) == ("POST", "/step"):
            choice = (await _body(receive, Step)).choice
            if self.scene is None or not self.scene.step(choice):
                raise Refused(409, "There is no step to take now")
            await _reply(send, 200, b"{}")
        else:
            raise Refused(404, "There is nothing here")

    async def _enter(self, body: Enter, send: Send) -> None:
        session = self.access.enter(body.token)
        if not session:
            raise Refused(
                403, "This link was used already, or is of an earlier run. The terminal of `make run` shows the present one"
            )
        cookie = f"{self.access.cookie}={session}; HttpOnly; SameSite=Strict; Path=/"
        await _reply(send, 200, b"{}", headers=((b"set-cookie", cookie.encode()),))
        self._entered()

    # ---- calls

    async def _act(self, body: Act) -> None:
        try:
            await self.lab.act(body.action, body.node)
        except KeyError:
            raise Refused(400, f"{body.node!r} is not a node of this cluster") from None

    async def _begin(self, scene_id: str) -> None:
        kind = next((kind for kind in SCENES if kind.id == scene_id), None)
        if kind is None:
            raise Refused(400, f"{scene_id!r} is not a scene")
        async with self._changing:
            await self._leave()
            self.left_over = ""
            self.scene = kind(self.lab)
            self.scene.begin(self._tidying)

    async def leave(self) -> None:
        """Leave the scene: the page shows all scenes again. What the scene has made in the cluster is removed meanwhile."""
        async with self._changing:
            await self._leave()

    async def _leave(self) -> None:
        if self.scene is not None:
            scene, self.scene = self.scene, None
            self.lab.changed()
            await scene.close()
            self._tidying = asyncio.create_task(self._tidy(scene, self._tidying))

    async def _tidy(self, scene: Scene, after: asyncio.Task[None] | None) -> None:
        try:
            await scene.tidy(after)
        except Exception as error:
            if self.scene is None:  # a scene that begins does the same work, and shows what fails
                what = f"What the scene “{scene.title}” has made in the cluster was not removed"
                self.left_over = f"{what}: {error!r}. The next scene tries it again."
                self.lab.changed()

    async def close(self) -> None:
        """The lab ends, and its nodes end with it."""
        if self.scene is not None:
            await self.scene.close()
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.wait([self._tidying])

    def _story(self, name: str) -> bytes:
        if name == "run":
            return self.lab.recording.lines()
        found = next((path for path in STORIES.glob("*.jsonl") if path.stem == name), None)
        if found is None:
            raise Refused(404, "There is no such replay")
        return found.read_bytes()

    # ---- what changes

    def _state(self) -> bytes:
        lab, scene = self.lab, self.scene
        parts = lab.live.parts
        state = {
            "scenes": [{"id": kind.id, "title": kind.title, "lead": kind.lead} for kind in SCENES],
            "scene": scene.shown() if scene is not None else None,
            "left_over": self.left_over,
            "nodes": lab.facts(),
            "is_fresh": lab.live.is_fresh,
            "seen_by": parts.get("node", ""),
            "at": parts.get("at", ""),
            "verdict": lab.verdict,
            "events": parts.get("events", [])[:12],
            "recorded": len(lab.recording.events),
        }
        return _json(state)

    async def _stream(self, receive: Receive, send: Send) -> None:
        """Server-sent events: the whole state, each time something has changed."""
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), *PAGE_HEADERS],
            }
        )
        gone = asyncio.create_task(_until_gone(receive))
        self.lab.browser_came()
        sent = b""
        try:
            while not gone.done():
                version = self.lab.version
                self.lab.live.watch(self.scene.watched if self.scene is not None else {})
                state = self._state()
                data = b": \n\n" if state == sent else b"data: " + state + b"\n\n"
                await send({"type": "http.response.body", "body": data, "more_body": True})
                sent = state
                await asyncio.sleep(BATCH_S)
                await self.lab.wait_for_change(version, ALIVE_S)
        except OSError:
            pass  # the browser has gone
        finally:
            gone.cancel()
            self.lab.browser_left()
            if not self.lab.is_watched:
                self.lab.live.watch(None)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive, kind: type[msgspec.Struct]) -> Any:
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "The call was not complete")
        body += message.get("body", b"")
        if len(body) > BODY_MAX:
            raise Refused(413, f"A call has at most {BODY_MAX} bytes")
        if not message.get("more_body"):
            break
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise Refused(400, str(error)) from None


async def _reply(
    send: Send, status: int, body: bytes, kind: str = "application/json", headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    own = [(b"content-type", kind.encode()), (b"cache-control", b"no-store"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *PAGE_HEADERS, *headers]})
    await send({"type": "http.response.body", "body": body})


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


class LabServer:
    """The lab in a thread of its own, with the relays of the nodes.

    Args:
        listener: where it listens, on loopback.
        entered: is called after a link was used; the next one is `link`.
    """

    def __init__(self, lab: Lab, listener: socket.socket, entered: Callable[[], None]) -> None:
        self._lab = lab
        self._listener = listener
        self._access = Access(listener.getsockname()[1])
        self._entered = entered
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="lab", daemon=True)
        self._is_up = threading.Event()
        #: why it did not start
        self._failure: Exception | None = None

    @property
    def url(self) -> str:
        """Without a token: it opens the lab in a browser that has used a link."""
        return self._access.url

    @property
    def link(self) -> str:
        return self._access.link

    def start(self) -> None:
        """Start, and wait until the relays carry.

        Raises:
            NotReady: they do not.
        """
        self._thread.start()
        self._is_up.wait()
        if self._failure is not None:
            raise NotReady(f"The lab did not start: {self._failure}") from self._failure

    def stop(self) -> None:
        """End it, and the processes of the present scene. Cut nodes are connected."""
        if self._server is not None:
            self._server.should_exit = True
            self._server.force_exit = True
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._is_up.is_set():
                raise
            self._failure = error
        finally:
            self._is_up.set()

    async def _serve(self) -> None:
        await self._lab.relays.start()
        site = Site(self._lab, self._access, self._entered)
        config = uvicorn.Config(
            site, log_level="critical", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        guard = asyncio.create_task(self._lab.guard_absence(site.leave))
        try:
            self._is_up.set()
            await self._server.serve(sockets=[self._listener])
        finally:
            guard.cancel()
            self._lab.live.stop()
            with suppress(asyncio.CancelledError):
                await site.close()
            for node_id in list(self._lab.relays.cut_off):
                self._lab.relays.heal(node_id)
            # Nodes that stop hand over through their links. The relays end with the process.
