"""`manage.py consume` and `manage.py publish`, over HTTP."""

from __future__ import annotations

import asyncio
import io
import sys
from functools import partial

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from dss_cli import consume as consume_module
from dss_cli.cluster import Cluster
from dss_cli.consume import CommandWorker, Options
from dss_client import AsyncTopic, Cancelled, Unavailable


@pytest.fixture
async def cluster(api):
    async with Cluster([api.url], "", print, transport="http") as cluster:
        yield cluster


@pytest.fixture
async def start(cluster):
    """`start(program, **options)` runs a worker; it is stopped after the test."""
    workers = []

    def start(program, **options):
        reports = []
        told = Options(topic="t", group="g", command=[sys.executable, "-c", program], **{"timeout_ms": 1000, **options})
        worker = CommandWorker(cluster, told, reports.append)
        worker.reports = reports
        worker.running = asyncio.ensure_future(worker.run(handle_signals=False))
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.stop()
        worker.stop()
        await worker.running


async def publish(cluster, *values, **fields):
    messages = [{"value": value, **fields} for value in values]
    answer = await cluster.call("queue.publish", topic="t", messages=messages)
    return [one["msg_id"] for one in answer["messages"]]


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (another process or thread makes it true)
            await asyncio.sleep(0.01)


def group_of(node):
    return node.broker.topics["t"].groups["g"]


async def test_the_command_gets_the_value_and_exit_0_acks(api, cluster, node, start, tmp_path):
    program = f"""
import os, sys
open({str(tmp_path)!r} + "/" + os.environ["DSS_MESSAGE_KEY"], "w").write(sys.stdin.read() + os.environ["DSS_MESSAGE_ATTEMPT"])
"""
    await publish(cluster, {"a": [1, "é"]}, key="k1")
    await publish(cluster, "plain", key="k2")
    worker = start(program, limit=2)
    await worker.running
    assert (tmp_path / "k1").read_text() == '{"a":[1,"é"]}1'
    assert (tmp_path / "k2").read_text() == '"plain"1'
    assert (worker.done, worker.failed) == (2, 0)
    assert not node.broker.topics["t"].messages.by_number


async def test_polls_that_fail_are_repeated_after_pauses_by_chance(cluster, start, monkeypatch):
    """Many consumers whose polls fail together do not come back at the same moment."""
    failures, calls = [], []

    def pause_s(count):
        failures.append(count)
        return 0.0

    async def refused(topic, *args):
        calls.append(topic)
        if len(calls) > 2:
            worker.stop()
            raise Cancelled("it is stopping")
        raise Unavailable("no node answers")

    monkeypatch.setattr(consume_module, "pause_s", pause_s)
    monkeypatch.setattr(AsyncTopic, "consume", refused)
    worker = start("")
    await worker.running
    assert failures == [1, 2]


async def test_after_a_failure_the_message_comes_back_later(api, cluster, node, start):
    await publish(cluster, 1)
    worker = start("raise SystemExit(3)", limit=2, backoff_ms=20)
    await worker.running
    assert worker.failed == 2
    (returned,) = group_of(node).backlog.returned.values()
    assert returned.attempts == 2
    assert [ending.reason for ending in returned.history] == ["nack", "nack"]
    assert "ended with 3; next attempt in 20 ms" in worker.reports[0]
    assert "next attempt in 40 ms" in worker.reports[1]


async def test_the_visibility_is_extended_while_the_command_runs(api, cluster, node, time_of_ticks, start, tmp_path):
    go = tmp_path / "go"
    await publish(cluster, 1)
    worker = start(f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)", visibility_ms=300, limit=1)
    await until(lambda: api.calls.count("/queue/extend") >= 4)
    assert group_of(node).in_flight
    go.touch()
    await worker.running
    assert group_of(node).counters.redelivered == 0
    assert group_of(node).counters.acked == 1


async def test_a_stop_lets_the_command_finish(api, cluster, node, start, tmp_path):
    started, go = tmp_path / "started", tmp_path / "go"
    await publish(cluster, 1)
    worker = start(
        f"import os, time\nopen({str(started)!r}, 'w')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)", grace_s=60
    )
    await until(started.exists)
    worker.stop()
    go.touch()
    await worker.running
    assert worker.done == 1
    assert group_of(node).counters.acked == 1


async def test_after_the_grace_period_the_command_is_terminated_and_the_attempt_does_not_count(
    api, cluster, node, start, tmp_path
):
    started = tmp_path / "started"
    await publish(cluster, 1)
    worker = start(f"import time\nopen({str(started)!r}, 'w')\ntime.sleep(600)", grace_s=0)
    await until(started.exists)
    worker.stop()
    await worker.running
    (returned,) = group_of(node).backlog.returned.values()
    assert (returned.attempts, returned.history[-1].reason) == (0, "silent")


async def test_a_stop_ends_the_waiting_call_and_its_waiter(api, cluster, node, start):
    worker = start("", timeout_ms=20_000)
    await until(lambda: node.broker.callers.waiters)
    worker.stop()
    await worker.running
    await until(lambda: not node.broker.callers.waiters)


async def test_lost_answers_cost_neither_messages_nor_attempts(api, cluster, node, start):
    """The connection breaks after the node has applied the call. The worker repeats its consumes and acks."""
    await publish(cluster, *range(5))
    api.lose = {"/queue/consume": 2, "/queue/ack": 2}
    worker = start("", limit=5)
    await worker.running
    assert worker.done == 5
    assert group_of(node).counters.redelivered == 0
    assert not node.broker.topics["t"].messages.by_number


async def test_several_commands_run_at_the_same_time(api, cluster, node, start, tmp_path):
    """Each command waits until all three are running."""
    program = f"""
import os, pathlib, time
here = pathlib.Path({str(tmp_path)!r})
(here / os.environ["DSS_MESSAGE_ID"]).touch()
while len(list(here.iterdir())) < 3: time.sleep(0.01)
"""
    await publish(cluster, 1, 2, 3)
    worker = start(program, concurrency=3, limit=3)
    await worker.running
    assert worker.done == 3


async def test_until_empty(api, cluster, node, start):
    await publish(cluster, 1, 2)
    worker = start("", until_empty=True)
    await worker.running
    assert worker.done == 2


async def test_a_command_that_does_not_read_its_input(api, cluster, node, start):
    await publish(cluster, "x" * 900)
    worker = start("import sys; sys.stdin.close()", limit=1)
    await worker.running
    assert worker.done == 1


@pytest.fixture
def over_http(monkeypatch):
    """The management commands use HTTP, because `api` has no WebSocket."""
    monkeypatch.setattr("dss_admin.cluster_command.Cluster", partial(Cluster, transport="http"))


async def test_the_management_commands(api, over_http, monkeypatch, tmp_path):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"n": 1}\n"two"\n'))
    await asyncio.to_thread(call_command, "publish", topic="t", url=[api.url], lines=True, key="k", stdout=out)
    await asyncio.to_thread(
        call_command, "publish", "plain text", topic="t", url=[api.url], text=True, header=["a=b"], stdout=out
    )
    assert len(out.getvalue().split()) == 3
    got = tmp_path / "got"
    err = io.StringIO()
    program = f"import sys; open({str(got)!r}, 'a').write(sys.stdin.read() + chr(10))"
    await asyncio.to_thread(
        call_command,
        "consume",
        "--topic=t",
        "--group=g",
        f"--url={api.url}",
        "--until-empty",
        "--text",
        "--",
        sys.executable,
        "-c",
        program,
        stderr=err,
    )
    assert got.read_text().splitlines() == ['{"n":1}', "two", "plain text"]
    assert "3 done, 0 failed" in err.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", "--topic=t", "{not json"),
        ("publish", "--topic=t", "--header=x", "1"),
        ("publish", "--topic=t", "--url=ftp://x", "1"),
        ("publish", "--topic=t\n", "1"),
        ("consume", "--topic=t", "--group=g", "--", "no-such-command-here"),
        ("consume", "--topic=t", "--group=g", "--concurrency=0", "--", "true"),
        ("consume", "--topic=t", "--group=", "--", "true"),
    ],
)
async def test_invalid_arguments_get_clear_messages(api, over_http, arguments):
    name, *rest = arguments
    url = [] if any(text.startswith("--url") for text in rest) else [f"--url={api.url}"]
    with pytest.raises(CommandError):
        await asyncio.to_thread(call_command, name, *url, *rest)
