"""The admin's live list of this node's lines."""

from __future__ import annotations

from itertools import islice
from typing import Any

from django.contrib import admin

from dss_admin.live_admin import LiveAdmin, rows_from_loop
from dss_api import running
from dss_cache.core.values import as_text
from dss_cache.django_app.models import LineRow
from dss_cache.service import CacheService, service_of

#: Rows in a list at most: they are copied in the event loop, while other calls wait.
ROWS_MAX = 5_000
VALUE_LENGTH_SHOWN = 200


def take_lines(service: CacheService) -> list[tuple[dict[str, Any], bytes]]:
    """The most recently used lines and their values, for `line_rows`."""
    return [(service.line_row(key, line), line.value) for key, line in islice(service.lines.recent_first(), ROWS_MAX)]


def line_rows(taken: list[tuple[dict[str, Any], bytes]]) -> list[LineRow]:
    rows = []
    for shown, value in taken:
        del shown["node"], shown["clients"]
        rows.append(LineRow(**shown, value=as_text(value, VALUE_LENGTH_SHOWN)))
    return rows


@admin.register(LineRow)
class LineRowAdmin(LiveAdmin):
    """Lines of this node, most recently used first."""

    contents = ("value",)
    list_display = ("key", "state", "version", "readable", "bytes", "age_ms", "value")
    list_filter = ("state",)
    search_fields = ("key", "value")

    def rows(self) -> list[LineRow]:
        return line_rows(rows_from_loop(lambda: take_lines(service_of(running.node()))))
