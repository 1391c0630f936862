"""The landing page, the API docs and the admin."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.views.decorators.http import require_safe

from dss_admin.callers import caller_of_header, caller_of_user
from dss_api import guard as guards
from dss_api import running
from dss_api.errors import Refused
from dss_api.problems import PROBLEMS
from dss_api.rights import READ
from dss_api.routes import require_possible


def readers_only(view: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """On a closed node, the page needs a token or a user who may read. DSS_OPEN_PATHS can open it."""

    @wraps(view)
    def checked(request: HttpRequest) -> Any:
        if not guards.shared().is_open and request.path not in settings.NODE.open_paths:
            header = request.META.get("HTTP_AUTHORIZATION", "")
            try:
                caller = caller_of_header(header) if header else caller_of_user(request.user)
                require_possible(READ, caller)
            except Refused as refusal:
                if refusal.code == "unauthenticated" and not header:
                    return redirect_to_login(request.path)
                return HttpResponse(refusal.detail, status=PROBLEMS[refusal.code].status, content_type="text/plain")
        return view(request)

    return checked


@require_safe
@readers_only
def landing(request: HttpRequest) -> HttpResponse:
    """Links to everything, and the state of the cluster."""
    context: dict[str, Any] = {"node": settings.NODE, "status": None}
    try:
        context["status"] = running.call_in_loop(_status)
    except Refused as refusal:
        context["problem"] = refusal.detail
    return render(request, "dss_console/landing.html", context)


def _status() -> dict[str, Any]:
    return running.node().status()


@require_safe
def no_icon(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=204)


@readers_only
def schema(request: HttpRequest) -> Any:
    """The OpenAPI document. drf-spectacular is large and rarely needed, so it is imported here."""
    from drf_spectacular.views import SpectacularJSONAPIView

    return SpectacularJSONAPIView.as_view()(request)


@readers_only
def docs(request: HttpRequest) -> Any:
    """Swagger UI, with files that this node serves; its own script with `?script=`."""
    from drf_spectacular.views import SpectacularSwaggerSplitView

    return SpectacularSwaggerSplitView.as_view(url_name="schema", template_name="dss_console/api_docs.html")(request)


page_patterns = [
    path("", landing, name="landing"),
    path("favicon.ico", no_icon),
    path("api/schema", schema, name="schema"),
    path("api/docs", docs, name="docs"),
    path("admin/", admin.site.urls),
]
