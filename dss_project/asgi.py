"""The ASGI application: one door in front of all others. It runs under any ASGI server.

API calls in JSON go to the lane. Whoever wants a page, of the same URLs too, goes to Django. `manage.py node` starts Raft
itself; a server that speaks ASGI's lifespan (`uvicorn dss_project.asgi:application`) starts and stops it through that.
"""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dss_project.settings")

import django

django.setup()

from channels.routing import ChannelNameRouter, ProtocolTypeRouter  # noqa: E402
from django.conf import settings  # noqa: E402

from dss_project import runtime  # noqa: E402
from dss_project.api.guard import Guard  # noqa: E402
from dss_project.api.lane import Lane  # noqa: E402
from dss_project.api.registry import operations, subscriptions  # noqa: E402
from dss_project.api.socket import SocketDoor  # noqa: E402
from dss_project.consumers import RaftConsumer  # noqa: E402
from dss_project.frontdoor import FrontDoor, lifespan  # noqa: E402
from dss_project.hosts import HostCheck  # noqa: E402

lane = Lane(operations(), runtime.node, Guard(settings.NODE.api_token), settings.NODE.body_bytes_max)
front = FrontDoor(lane, HostCheck(settings.NODE.allowed_hosts), settings.NODE.body_bytes_max)

application = ProtocolTypeRouter(
    {
        "http": front,
        "websocket": SocketDoor(lane, front, subscriptions()),
        "channel": ChannelNameRouter({"raft": RaftConsumer.as_asgi()}),
        "lifespan": lifespan,
    }
)
