"""The pages of the site: the cluster page and its details, the API docs, and the admin."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_safe

from dss_console.live_pages import live_patterns
from dss_console.page_rights import readers_only
from dss_raft.django_app.login import LoginForm, change_password, login

#: the same as for the admin's static files
TEXTS_MAX_AGE_S = 3600


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


#: Translations for the admin's scripts. Lists and forms load them.
texts_of_scripts = admin.site.admin_view(
    cache_control(private=True, max_age=TEXTS_MAX_AGE_S)(admin.site.i18n_javascript), cacheable=True
)

admin.site.login_form = LoginForm
# The lists need the width.
admin.site.enable_nav_sidebar = False

page_patterns = [
    *live_patterns,
    path("favicon.ico", no_icon),
    path("api/schema", schema, name="schema"),
    path("api/docs", docs, name="docs"),
    # In place of the admin's own.
    path("admin/login/", login),
    path("admin/password_change/", admin.site.admin_view(change_password, cacheable=True)),
    path("admin/jsi18n/", texts_of_scripts),
    path("admin/", admin.site.urls),
]
