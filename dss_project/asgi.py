"""The ASGI application and the listener of `manage.py node`.

Calls of the API in JSON go from the listener to the JSON fast path. Requests for pages go to Django, even at the same URLs.
"""

from __future__ import annotations

import os
import socket

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dss_project.settings")

import django

django.setup()

from channels.routing import ChannelNameRouter, ProtocolTypeRouter  # noqa: E402
from django.conf import settings  # noqa: E402

from dss_api import guard as guards  # noqa: E402
from dss_api import running  # noqa: E402
from dss_api.client_memory import BYTES, ClientMemory  # noqa: E402
from dss_api.host_check import HostCheck  # noqa: E402
from dss_api.http_limits import HttpLimits  # noqa: E402
from dss_api.http_listener import HttpListener, TakeOver  # noqa: E402
from dss_api.in_progress import InProgress  # noqa: E402
from dss_api.json_fast_path import JsonFastPath  # noqa: E402
from dss_api.page_access import PageAccess  # noqa: E402
from dss_api.proxies import TrustedProxies  # noqa: E402
from dss_api.security_headers import hsts  # noqa: E402
from dss_api.tls import ServerTls  # noqa: E402
from dss_api.websocket import WebSocketEntryPoint  # noqa: E402
from dss_project import tracing  # noqa: E402
from dss_project.access import make_guard  # noqa: E402
from dss_project.http_entry import ALWAYS_OPEN, WEB_SERVER_PATHS, HttpEntryPoint, refuse_to_start  # noqa: E402
from dss_project.raft_worker import RaftConsumer  # noqa: E402
from dss_project.registry import operations, subscriptions  # noqa: E402
from dss_project.server import descriptors  # noqa: E402
from dss_queue.sqs.port import SqsPort  # noqa: E402

config = settings.NODE
in_progress = InProgress(
    config.calls_per_address_max,
    ClientMemory(config.client_bytes_max),
    calls_per_second_max=config.calls_per_second_per_address_max,
    subscriptions_per_address_max=config.subscriptions_per_address_max,
)
BYTES.set_function(lambda: in_progress.memory.bytes)
is_host_allowed = HostCheck(config.allowed_hosts)
proxies = TrustedProxies(config.trusted_proxies)
guard = make_guard(config)
guards.trust_origins(config.csrf_trusted_origins, https_only=config.tls is not None)
guards.set_shared(guard)
#: sends the last spans
end_traces = tracing.begin(config) if config.traces else None
json = JsonFastPath(operations(), running.node, guard)
check_page = PageAccess(
    guard, json.routes, (*ALWAYS_OPEN, *config.open_paths), settings.SESSION_COOKIE_NAME, login="/admin/login/"
)

application = ProtocolTypeRouter(
    {
        "http": HttpEntryPoint(in_progress, proxies, hsts(config.hsts_seconds)),
        "websocket": WebSocketEntryPoint(json, is_host_allowed, in_progress, subscriptions(), proxies),
        "channel": ChannelNameRouter({"raft": RaftConsumer.as_asgi()}),
        "lifespan": refuse_to_start,
    }
)


def http_listener(take_over: TakeOver, tls: ServerTls | None, sqs: socket.socket | None = None) -> HttpListener:
    """The listener of `manage.py node`, in front of the web server that takes over what is not a call of the API.

    Args:
        sqs: the socket of the SQS endpoint.
    """
    # Only a node that serves needs uvicorn.
    from dss_project.server.websockets import WebSockets

    connections_max = descriptors.connections_max(config.connections_max)
    per_address_max = config.connections_per_address_max
    if connections_max < config.connections_max:
        # One address must not take all of the few connections.
        per_address_max = min(per_address_max, connections_max * 9 // 10)
    limits = HttpLimits(
        body_bytes_max=config.body_bytes_max,
        connections_max=connections_max,
        connections_per_address_max=per_address_max,
    )
    listener = HttpListener(
        json,
        is_host_allowed,
        in_progress,
        WEB_SERVER_PATHS,
        limits,
        take_over,
        WebSockets(application, config).open,
        check_page,
        proxies,
        hsts(config.hsts_seconds),
        tls,
    )
    if sqs is not None:
        listener.add_port(sqs, SqsPort(guard, "http" if tls is None else "https"))
    return listener
