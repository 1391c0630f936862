"""Start the shop: a node if there is none, the database, the server and a worker. Ctrl-C stops what it has started.

    python examples/shop/run.py

It uses the cluster that DSS_URLS names, or the one that `make run` has started on this machine. Otherwise it starts a node of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "client")]

from dss_client import Client, DssError  # noqa: E402
from dss_dev.local_cluster import LocalCluster, free_ports  # noqa: E402
from dss_dev.running_cluster import urls_of_running_cluster  # noqa: E402

HOST = "127.0.0.1"
READY_S = 60.0
STOP_S = 40.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Start the example shop.")
    parser.add_argument("--port", type=int, default=8000, help="of the shop; 0: any free one (%(default)s)")
    parser.add_argument(
        "--data", type=Path, default=HERE / ".data", help="the directory of its database and of its node (%(default)s)"
    )
    parser.add_argument("--own-node", action="store_true", help="start a node, even if there is a cluster")
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    own = None
    urls = "" if arguments.own_node else urls_of_running_cluster()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        if not urls:
            print("Starting a node", flush=True)
            own = LocalCluster(arguments.data / "node", free_ports(1))
            own.start()
            own.wait_ready()
            urls = own.nodes[0].url
        return serve(urls, arguments, processes, stop)
    except (DssError, OSError, RuntimeError) as error:
        print(f"The shop cannot start: {error}", file=sys.stderr)
        return 1
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(STOP_S)
        if own is not None:
            own.stop()


def serve(urls: str, arguments: argparse.Namespace, processes: list[subprocess.Popen[bytes]], stop: threading.Event) -> int:
    # Fencing tokens are numbers of one cluster, so each cluster has a database of its own.
    data = arguments.data.resolve() / cluster_id(urls)
    data.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "DSS_URLS": urls, "SHOP_DATA": str(data), "DJANGO_SETTINGS_MODULE": "project.settings"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [HERE, ROOT / "client"]))
    port = arguments.port or free_port()

    def manage(*command: str) -> list[str]:
        return [sys.executable, str(HERE / "manage.py"), *command]

    for command in (("migrate", "--verbosity=0"), ("seed",)):
        subprocess.run(manage(*command), env=environment, check=True)
    with (data / "log").open("ab") as log:
        for command in (("dss_worker", "--concurrency=2", "--no-reload"), ("runserver", "--noreload", f"{HOST}:{port}")):
            # Ctrl-C must reach only this process, which ends the others in order.
            processes.append(subprocess.Popen(manage(*command), env=environment, stdout=log, stderr=log, start_new_session=True))
    url = f"http://{HOST}:{port}/"
    wait_for(url, processes, stop, data / "log")
    print(f"Shop:   {url}\nNodes:  {urls}\nMails:  {data / 'mails'}\nLog:    {data / 'log'}     Stop: Ctrl-C", flush=True)
    while not stop.wait(0.2):
        ended = [process for process in processes if process.poll() is not None]
        if ended:
            raise RuntimeError(f"{' '.join(map(str, ended[0].args))} has ended; see {data / 'log'}")
    return 0


def cluster_id(urls: str) -> str:
    with Client(urls) as client:
        stores = sorted(client.call("raft.leader")["stores"])
    return hashlib.sha256(",".join(stores).encode()).hexdigest()[:8]


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for(url: str, processes: list[subprocess.Popen[bytes]], stop: threading.Event, log: Path) -> None:
    end = time.monotonic() + READY_S
    while not stop.is_set():
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > end or any(process.poll() is not None for process in processes):
                raise RuntimeError(f"no answer from {url}: {error}; see {log}") from None
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
