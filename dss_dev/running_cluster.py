"""The cluster that the examples use: the one that is there already."""

from __future__ import annotations

import os

from dss_client import Client, DssError
from dss_dev.local_cluster import HOST, PORTS_OF_ONE, PORTS_OF_THREE

ANSWER_S = 1.0


def urls_of_running_cluster() -> str:
    """The addresses in DSS_URLS, or those of the cluster that `make run` has started; "" if there is none."""
    if os.environ.get("DSS_URLS"):
        return os.environ["DSS_URLS"]
    for ports in (PORTS_OF_THREE, PORTS_OF_ONE):
        urls = ",".join(f"http://{HOST}:{port}" for port in ports)
        try:
            with Client(urls, timeout=ANSWER_S) as client:
                client.call("ready")
        except DssError:
            continue
        return urls
    return ""
