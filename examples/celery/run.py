"""Celery on the cluster: starts a worker, and nodes if there are none, sends tasks and prints what comes back.

    python examples/celery/run.py

It uses the cluster that DSS_URLS names, or the one that `make run` has started on this machine. Otherwise it starts three nodes, and kills
the leader while tasks are on their way.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "client"), str(HERE)]

from dss_client import DssError  # noqa: E402
from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports  # noqa: E402
from dss_dev.preloaded import Pool  # noqa: E402
from dss_dev.running_cluster import urls_of_running_cluster  # noqa: E402

STOP_S = 30.0
RESULT_S = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run tasks of Celery on the cluster.")
    parser.add_argument("--own-nodes", action="store_true", help="start three nodes, even if there is a cluster")
    parser.add_argument("--tasks", type=int, default=200, help="how many are sent while the leader is killed (%(default)s)")
    arguments = parser.parse_args()
    urls = "" if arguments.own_nodes else urls_of_running_cluster()
    own = pool = None
    with tempfile.TemporaryDirectory() as data:
        try:
            if not urls:
                print("Starting three nodes", flush=True)
                # One process loads the libraries for all of them.
                LocalNode.pool = pool = Pool(1, nodes_end_with_it=True)
                own = LocalCluster(Path(data), free_ports(3))
                own.start()
                own.wait_ready()
                urls = ",".join(node.url for node in own.nodes)
            return work(urls, own, arguments.tasks)
        except (DssError, OSError, RuntimeError) as error:
            print(f"The example cannot run: {error}", file=sys.stderr)
            return 1
        finally:
            if own is not None:
                own.stop()
            if pool is not None:
                pool.close()


def work(urls: str, own: LocalCluster | None, count: int) -> int:
    os.environ["DSS_URLS"] = urls
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [HERE, ROOT / "client"]))}
    command = [sys.executable, "-m", "celery", "-A", "orders", "worker", "--concurrency=2", "--loglevel=error"]
    worker = subprocess.Popen(command, cwd=HERE, env=environment, start_new_session=True)
    try:
        show(own, count)
        return 0
    finally:
        worker.terminate()
        worker.wait(STOP_S)


def show(own: LocalCluster | None, count: int) -> None:
    # They read DSS_URLS.
    from celery import chord
    from orders import app, book, pay, price_of, total

    print("a chord:       ", chord(price_of.s(article) for article in range(1, 5))(total.s()).get(timeout=RESULT_S), flush=True)
    print("a retry:       ", pay.delay(100).get(timeout=RESULT_S))
    in_order = [book.apply_async(("customer-7", step), headers={"dss_key": "customer-7"}) for step in range(5)]
    print("in order:      ", [result.get(timeout=RESULT_S)[1] for result in in_order])
    print("urgent:        ", price_of.apply_async((7,), priority=9).get(timeout=RESULT_S))
    began = time.monotonic()
    results = [price_of.apply_async((number,), countdown=1) for number in range(count)]
    if own is not None:
        print(f"killing the leader, with {count} tasks on their way", flush=True)
        own.leader().kill()
    lost = sum(result.get(timeout=RESULT_S) != number * 10 for number, result in enumerate(results))
    print(f"{count} tasks:     {lost} lost, after {time.monotonic() - began:.1f} s")
    print("the worker:    ", *app.control.inspect(timeout=2).ping() or ["does not answer"])


if __name__ == "__main__":
    sys.exit(main())
