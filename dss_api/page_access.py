"""Who may see pages, decided from the head of a request: before its body is read, and before it costs a thread.

On a closed node, a request for a page needs a token or the cookie of a session. The cookie is checked later, by the pages themselves; here
it only has to be there. A browser without one is sent to the login, and a program gets 401.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from dss_api.codec import EncodedAnswer, encode_refusal
from dss_api.errors import Refused
from dss_api.guard import TOKEN_WANTED, Guard
from dss_api.negotiation import prefers_page
from dss_api.rights import READ
from dss_api.routes import Routes, require_possible

#: Pages whose answer needs the right to read, not only some token.
READ_PATHS = ("/", "/metrics", "/api/", "/ui/")


class PageAccess:
    """Call it with method, path, headers and address of a request. It returns the refusal, or None.

    Args:
        open_paths: beginnings of paths that need nothing: the admin, which has its own login, static files, and what the operator opens.
        session_cookie: name of the cookie that a logged-in user has.
        login: path of the login.
    """

    def __init__(self, guard: Guard, routes: Routes, open_paths: Iterable[str], session_cookie: str, login: str) -> None:
        self._guard = guard
        self._routes = routes
        self._open_paths = tuple(open_paths)
        self._cookie = session_cookie.encode() + b"="
        self._login = login

    def is_open(self, path: str) -> bool:
        """Whether the path needs neither a token nor a session now."""
        return self._guard.is_open or any(
            path == one or (path.startswith(one) and (one.endswith("/") and one != "/")) for one in self._open_paths
        )

    def __call__(
        self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]], address: str | None = None
    ) -> EncodedAnswer | None:
        if self.is_open(path) or self._is_open_call(method, path):
            return None
        authorization = accept = b""
        has_session = False
        for name, value in headers:
            if name == b"authorization":
                authorization = value
            elif name == b"cookie":
                has_session = has_session or self._cookie in value
            elif name == b"accept":
                accept = value
        try:
            if authorization:
                caller = self._guard.authenticate(authorization, address)
                if path == "/" or path.startswith(READ_PATHS[1:]):
                    require_possible(READ, caller)
                return None
            if has_session and path != "/metrics":
                return None
            if method in ("GET", "HEAD") and prefers_page(accept):
                to = f"{self._login}?next={quote(path)}".encode()
                return EncodedAnswer(302, b"", ((b"location", to), (b"cache-control", b"no-store")))
            raise Refused("unauthenticated", TOKEN_WANTED)
        except Refused as refusal:
            return encode_refusal(refusal)

    def _is_open_call(self, method: str, path: str) -> bool:
        methods, _ = self._routes.find(path)
        route = methods.get("GET" if method == "HEAD" else method) if methods else None
        return route is not None and not route.guarded
