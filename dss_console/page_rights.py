"""Who may see the pages that show the state of the cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse

from dss_admin.callers import caller_of_header, caller_of_user
from dss_api import guard as guards
from dss_api.caller import Caller
from dss_api.errors import Refused
from dss_api.problems import PROBLEMS
from dss_api.rights import READ
from dss_api.routes import require_possible


def readers_only(view: Callable[..., Any]) -> Callable[..., Any]:
    """On a closed node, the page needs a token or a user who may read. DSS_OPEN_PATHS can open it."""

    @wraps(view)
    def checked(request: HttpRequest, **arguments: Any) -> Any:
        refusal = reading_refused(request)
        if refusal is None:
            return view(request, **arguments)
        if refusal.code == "unauthenticated" and not request.META.get("HTTP_AUTHORIZATION"):
            return redirect_to_login(request.get_full_path())
        return HttpResponse(refusal.detail, status=PROBLEMS[refusal.code].status, content_type="text/plain")

    return checked


def may_read(request: HttpRequest) -> bool:
    """Whether the request may see the state of the cluster."""
    return hasattr(request, "user") and reading_refused(request) is None


def reading_refused(request: HttpRequest) -> Refused | None:
    """Why the request may not see the state of the cluster; None if it may."""
    if guards.shared().is_open or request.path in settings.NODE.open_paths:
        return None
    try:
        require_possible(READ, caller_of_request(request))
    except Refused as refusal:
        return refusal
    return None


def caller_of_request(request: HttpRequest) -> Caller:
    """Who asks for a page.

    Raises:
        Refused: `unauthenticated`.
    """
    header = request.META.get("HTTP_AUTHORIZATION", "")
    return caller_of_header(request) if header else caller_of_user(request.user)
