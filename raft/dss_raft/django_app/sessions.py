"""Sessions that end 12 hours after the login, however often their cookie is signed again.

A cookie is signed again with the current time when its contents change, when the key changes and when users change their own password. So
the age of the signature is not that of the login: the session has the time of that itself.
"""

from __future__ import annotations

import time
from typing import Any

from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends import signed_cookies

#: in a session: when its user logged in, in seconds since 1970
LOGGED_IN_S = "dss_logged_in_s"


class SessionStore(signed_cookies.SessionStore):
    """Django's, which takes a session whose login is too long ago for an empty one."""

    def load(self) -> dict[str, Any]:
        data: dict[str, Any] = super().load()
        if SESSION_KEY in data and data.get(LOGGED_IN_S, 0) + self.get_session_cookie_age() < time.time():
            self.create()
            return {}
        return data


def note_login(request: Any, **others: Any) -> None:
    """A receiver of Django's signal `user_logged_in`."""
    request.session[LOGGED_IN_S] = int(time.time())
