"""`manage.py consume` and `manage.py publish`, over HTTP."""

from __future__ import annotations

import asyncio
import io
import sys

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from dss_api.client import Client
from dss_queue.worker import Options, Worker


@pytest.fixture
async def start(door, node):
    """`start(program, **options)` runs a worker in a thread; it is stopped after the test."""
    workers = []

    def start(program, **options):
        reports = []
        told = Options(topic="t", group="g", command=[sys.executable, "-c", program], **{"timeout_ms": 1000, **options})
        worker = Worker(told, lambda: Client([door.url]), reports.append)
        worker.reports = reports
        worker.running = asyncio.ensure_future(asyncio.to_thread(worker.run))
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.stop()
        worker.stop()
        await worker.running


async def publish(door, *values, **fields):
    client = Client([door.url])
    messages = [{"value": value, **fields} for value in values]
    answer = await asyncio.to_thread(client.post, "/queue/publish", {"topic": "t", "messages": messages}, dict)
    client.close()
    return [one["msg_id"] for one in answer["messages"]]


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (it is another process or thread that makes it true)
            await asyncio.sleep(0.01)


def group_of(node):
    return node.broker.topics["t"].groups["g"]


async def test_the_command_gets_the_value_and_exit_0_is_the_ack(door, node, start, tmp_path):
    program = f"""
import os, sys
open({str(tmp_path)!r} + "/" + os.environ["DSS_MESSAGE_KEY"], "w").write(sys.stdin.read() + os.environ["DSS_MESSAGE_ATTEMPT"])
"""
    await publish(door, {"a": [1, "é"]}, key="k1")
    await publish(door, "plain", key="k2")
    worker = start(program, limit=2)
    await worker.running
    assert (tmp_path / "k1").read_text() == '{"a":[1,"é"]}1'
    assert (tmp_path / "k2").read_text() == '"plain"1'
    assert (worker.done, worker.failed) == (2, 0)
    assert not node.broker.topics["t"].messages.by_number


async def test_a_failure_brings_the_message_back_later(door, node, start):
    await publish(door, 1)
    worker = start("raise SystemExit(3)", limit=2, backoff_ms=20)
    await worker.running
    assert worker.failed == 2
    (returned,) = group_of(node).backlog.returned.values()
    assert returned.attempts == 2
    assert [ending.reason for ending in returned.history] == ["nack", "nack"]
    assert "ended with 3; again in 20 ms" in worker.reports[0]
    assert "again in 40 ms" in worker.reports[1]


async def test_the_message_is_kept_while_the_command_runs(door, node, start, tmp_path):
    go = tmp_path / "go"
    await publish(door, 1)
    worker = start(f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)", visibility_ms=300, limit=1)
    await until(lambda: door.calls.count("/queue/extend") >= 4)
    assert group_of(node).in_flight
    go.touch()
    await worker.running
    assert group_of(node).counters.redelivered == 0
    assert group_of(node).counters.acked == 1


async def test_a_stop_lets_the_command_finish(door, node, start, tmp_path):
    started, go = tmp_path / "started", tmp_path / "go"
    await publish(door, 1)
    worker = start(
        f"import os, time\nopen({str(started)!r}, 'w')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)", grace_s=60
    )
    await until(started.exists)
    worker.stop()
    go.touch()
    await worker.running
    assert worker.done == 1
    assert group_of(node).counters.acked == 1


async def test_after_the_grace_the_command_is_ended_and_the_attempt_does_not_count(door, node, start, tmp_path):
    started = tmp_path / "started"
    await publish(door, 1)
    worker = start(f"import time\nopen({str(started)!r}, 'w')\ntime.sleep(600)", grace_s=0)
    await until(started.exists)
    worker.stop()
    await worker.running
    (returned,) = group_of(node).backlog.returned.values()
    assert (returned.attempts, returned.history[-1].reason) == (0, "silent")


async def test_a_stop_ends_the_waiting_call_and_the_node_forgets_it(door, node, start):
    worker = start("", timeout_ms=20_000)
    await until(lambda: node.broker.callers.waiters)
    worker.stop()
    await worker.running
    await until(lambda: not node.broker.callers.waiters)


async def test_lost_answers_cost_neither_messages_nor_attempts(door, node, start):
    """The connection breaks after the node has done its part: consume, ack, and the rest are repeated."""
    await publish(door, *range(5))
    door.lose = {"/queue/consume": 2, "/queue/ack": 2}
    worker = start("", limit=5)
    await worker.running
    assert worker.done == 5
    assert group_of(node).counters.redelivered == 0
    assert not node.broker.topics["t"].messages.by_number


async def test_several_at_a_time(door, node, start, tmp_path):
    """Each command waits until all of them run."""
    program = f"""
import os, pathlib, time
here = pathlib.Path({str(tmp_path)!r})
(here / os.environ["DSS_MESSAGE_ID"]).touch()
while len(list(here.iterdir())) < 3: time.sleep(0.01)
"""
    await publish(door, 1, 2, 3)
    worker = start(program, concurrency=3, limit=3)
    await worker.running
    assert worker.done == 3


async def test_until_empty(door, node, start):
    await publish(door, 1, 2)
    worker = start("", until_empty=True)
    await worker.running
    assert worker.done == 2


async def test_a_command_that_does_not_read_its_input(door, node, start):
    await publish(door, "x" * 900)
    worker = start("import sys; sys.stdin.close()", limit=1)
    await worker.running
    assert worker.done == 1


async def test_the_next_node_is_asked_when_one_is_gone(door):
    gone = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{gone.sockets[0].getsockname()[1]}"
    gone.close()
    await gone.wait_closed()
    client = Client([url, door.url], token="secret")
    call = {"topic": "t", "value": 1}
    answer = await asyncio.to_thread(client.post, "/queue/publish", call, dict, 0, 30.0)
    client.close()
    assert answer["ok"] is True
    assert door.authorization == ["Bearer secret"]


async def test_the_commands_at_a_terminal(door, node, monkeypatch, tmp_path):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"n": 1}\n"two"\n'))
    await asyncio.to_thread(call_command, "publish", topic="t", url=[door.url], lines=True, key="k", stdout=out)
    await asyncio.to_thread(
        call_command, "publish", "plain text", topic="t", url=[door.url], text=True, header=["a=b"], stdout=out
    )
    assert len(out.getvalue().split()) == 3
    got = tmp_path / "got"
    monkeypatch.setattr("signal.signal", lambda *_: None)
    err = io.StringIO()
    program = f"import sys; open({str(got)!r}, 'a').write(sys.stdin.read() + chr(10))"
    await asyncio.to_thread(
        call_command,
        "consume",
        "--topic=t",
        "--group=g",
        f"--url={door.url}",
        "--until-empty",
        "--text",
        "--",
        sys.executable,
        "-c",
        program,
        stderr=err,
    )
    assert got.read_text().splitlines() == ['{"n": 1}', "two", "plain text"]
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
async def test_mistakes_are_told_in_words(door, arguments, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    name, *rest = arguments
    url = [] if any(text.startswith("--url") for text in rest) else [f"--url={door.url}"]
    with pytest.raises(CommandError):
        await asyncio.to_thread(call_command, name, *url, *rest)
