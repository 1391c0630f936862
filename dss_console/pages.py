"""The landing page, the API docs and the admin."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.views.decorators.http import require_safe

from dss_api import running
from dss_api.errors import Refused


@require_safe
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


def schema(request: HttpRequest) -> Any:
    """The OpenAPI document. drf-spectacular is large and rarely needed, so it is imported here."""
    from drf_spectacular.views import SpectacularJSONAPIView

    return SpectacularJSONAPIView.as_view()(request)


def docs(request: HttpRequest) -> Any:
    """Swagger UI, with files that this node serves."""
    from drf_spectacular.views import SpectacularSwaggerView

    return SpectacularSwaggerView.as_view(url_name="schema")(request)


page_patterns = [
    path("", landing, name="landing"),
    path("favicon.ico", no_icon),
    path("api/schema", schema, name="schema"),
    path("api/docs", docs, name="docs"),
    path("admin/", admin.site.urls),
]
