"""Pages for people: the landing page, the admin, the API docs, and the browsable API."""

from django.contrib import admin
from django.urls import path

admin.site.site_header = "Distributed Sync System"
admin.site.site_title = "Distributed Sync System"
admin.site.index_title = "This node, live"

urlpatterns = [
    path("admin/", admin.site.urls),
]
