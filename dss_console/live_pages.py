"""The cluster page and its details. They are complete when they are rendered; the script only keeps them up to date.

A page is rendered in a thread of Django's. It gets the view from the event loop, which asks the other nodes first.
"""

from __future__ import annotations

from typing import Any

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import render
from django.urls import path
from django.views.decorators.http import require_safe

from dss_api import guard as guards
from dss_api import running, tickets
from dss_api.errors import Refused
from dss_api.fields import check_name
from dss_api.problems import PROBLEMS
from dss_console.live.answers import ClusterEvent
from dss_console.live.requests import WatchCluster
from dss_console.live.view import SERVICE, LiveView
from dss_console.page_rights import caller_of_request, readers_only, reading_refused

_HEAD = WatchCluster(head=True)


def _live_view() -> LiveView:
    live: LiveView | None = running.node().services.get(SERVICE)
    if live is None:
        raise Refused("stopping", "this node is not running")
    return live


def head_view() -> ClusterEvent | None:
    """The verdict and the nodes, without asking other nodes; None if this node does not run."""
    try:
        return running.call_in_loop(lambda: _live_view().glance(_HEAD))
    except Refused:
        return None


def _page(request: HttpRequest, template: str, here: str, watch: WatchCluster, **context: Any) -> HttpResponse:
    context |= {"node_id": settings.NODE.node_id, "here": here, "watch": _json(watch), "view": None}
    context["needs_ticket"] = not guards.shared().is_open
    try:
        context["view"] = running.await_in_loop(_live_view().look(watch))
    except Refused as refusal:
        context["problem"] = f"The node is not running: {refusal.detail}."
    response = render(request, template, context)
    response["Cache-Control"] = "no-store"
    return response


def _json(watch: WatchCluster) -> str:
    given = {name: value for name, value in msgspec.structs.asdict(watch).items() if value}
    return msgspec.json.encode(given).decode()


@require_safe
def ticket(request: HttpRequest) -> HttpResponse:
    """A ticket for one WebSocket connection of the page; see `dss_api.tickets`."""
    refusal = reading_refused(request)
    if refusal is not None:
        return _refused(refusal)
    if request.META.get("HTTP_AUTHORIZATION"):
        return _refused(Refused("forbidden", tickets.NOT_FOR_TOKENS))
    try:
        caller = caller_of_request(request)
        text = running.call_in_loop(lambda: tickets.shared().give(caller))
    except Refused as refused:
        return _refused(refused)
    return JsonResponse({"ticket": text}, headers={"Cache-Control": "no-store"})


def _refused(refusal: Refused) -> HttpResponse:
    return JsonResponse({"detail": refusal.detail}, status=PROBLEMS[refusal.code].status)


@require_safe
@readers_only
def cluster(request: HttpRequest) -> HttpResponse:
    return _page(request, "dss_console/cluster.html", "cluster", WatchCluster())


_LISTS: dict[str, dict[str, str]] = {
    "locks": {
        "heading": "Locks",
        "lead": "Keys with waiting calls first. Locks are replicated: every node shows the same.",
        "find_label": "Key",
        "find_action": "/ui/lock",
        "act_text": "To search, filter and release:",
        "act_link": "/admin/dss_locks/",
        "act_label": "the locks in the admin",
    },
    "queues": {
        "heading": "Queues",
        "lead": "Groups with dead letters first. Queues are replicated: every node shows the same.",
        "find_label": "Topic",
        "find_action": "/ui/topic",
        "act_text": "To search, redrive and purge:",
        "act_link": "/admin/dss_queue/",
        "act_label": "the queues in the admin",
    },
    "cache": {
        "heading": "Cache",
        "lead": "Each node has lines of its own. These are the keys that this node used last, and what the others have of them.",
        "find_label": "Key",
        "find_action": "/ui/key",
        "act_text": "To search and evict:",
        "act_link": "/admin/dss_cache/",
        "act_label": "the cache in the admin",
    },
}


@require_safe
@readers_only
def listing(request: HttpRequest, rows: Any) -> HttpResponse:
    context = {**_LISTS[rows], "panel": f"dss_console/panels/{rows}.html"}
    return _page(request, "dss_console/list.html", rows, WatchCluster(rows=rows), **context)


@require_safe
@readers_only
def detail(request: HttpRequest, what: str, here: str) -> HttpResponse:
    name = request.GET.get("name", "")
    try:
        check_name("name", name)
        if not name:
            raise ValueError("`name` is missing")
    except ValueError as error:
        return HttpResponseBadRequest(str(error), content_type="text/plain; charset=utf-8")
    return _page(request, f"dss_console/{what}.html", here, WatchCluster(**{what: name}), name=name)


live_patterns = [
    path("", cluster, name="landing"),
    path("ui/ticket", ticket, name="ui-ticket"),
    *(path(f"ui/{rows}", listing, {"rows": rows}, name=f"ui-{rows}") for rows in _LISTS),
    path("ui/lock", detail, {"what": "lock", "here": "locks"}, name="ui-lock"),
    path("ui/topic", detail, {"what": "topic", "here": "queues"}, name="ui-topic"),
    path("ui/key", detail, {"what": "key", "here": "cache"}, name="ui-key"),
]
