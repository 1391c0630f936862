"""Pages for people: the landing page, the admin, the API docs, and the browsable API."""

from django.contrib import admin

from dss_console.browsable_api import views_of
from dss_console.pages import page_patterns
from dss_project.registry import operations

admin.site.site_header = "Distributed Sync System"
admin.site.site_title = "Distributed Sync System"
admin.site.index_title = "This node, live"

urlpatterns = [*page_patterns, *views_of(operations())]
