"""Pages for people: the landing page, the admin, the API docs, and the browsable API."""

from django.contrib import admin
from django.urls import path

from dss_project import pages
from dss_project.api.registry import operations
from dss_project.api.views import views_of

admin.site.site_header = "Distributed Sync System"
admin.site.site_title = "Distributed Sync System"
admin.site.index_title = "This node, live"

urlpatterns = [
    path("", pages.landing, name="landing"),
    path("favicon.ico", pages.no_icon),
    path("api/schema", pages.schema, name="schema"),
    path("api/docs", pages.docs, name="docs"),
    path("admin/", admin.site.urls),
    *views_of(operations()),
]
