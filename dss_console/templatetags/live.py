"""Tags and filters of the live pages."""

from __future__ import annotations

from typing import Any

from django import template
from django.conf import settings
from django.utils.safestring import mark_safe
from msgspec import UNSET

from dss_api import guard as guards
from dss_console.live_pages import head_view
from dss_console.page_rights import may_read

register = template.Library()


@register.filter
def number(value: Any) -> str:
    """12,345; "" for what is no number."""
    return f"{value:,}" if isinstance(value, int) else ""


@register.filter
def unset(value: Any) -> Any:
    """A part of the view, or nothing."""
    return () if value is UNSET or value is None or value == "" else value


@register.filter
def svg(value: str) -> str:
    """A picture that `dss_locks.picture` has drawn, which escapes its texts."""
    return mark_safe(value)


@register.simple_tag
def lab_url() -> str:
    """Where the lab of `make run` is; "" if this node was started otherwise."""
    url: str = settings.NODE.lab_url
    return url


@register.inclusion_tag("dss_console/head.html", takes_context=True)
def live_head(context: Any) -> dict[str, Any]:
    """On pages that are not the cluster's: which node this is, and a banner when it cannot be trusted."""
    request = context.get("request")
    is_shown = request is not None and may_read(request)
    return {
        "node_id": settings.NODE.node_id,
        "view": head_view() if is_shown else None,
        "is_live": is_shown,
        "needs_ticket": not guards.shared().is_open,
    }
