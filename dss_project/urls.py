"""Pages for people: the landing page, the admin, the API docs, and the browsable API."""

from django.contrib import admin

from dss_project.api.registry import operations
from dss_project.api.views import views_of
from dss_project.pages import page_patterns

admin.site.site_header = "Distributed Sync System"
admin.site.site_title = "Distributed Sync System"
admin.site.index_title = "This node, live"

urlpatterns = [*page_patterns, *views_of(operations())]
