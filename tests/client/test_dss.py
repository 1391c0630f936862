"""`dss`: each command with its output for people and as JSON, and what goes wrong."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest

from dss_cli.cluster import Cluster
from dss_cli.commands import dss as root
from dss_cli.commands import run
from dss_dev.local_cluster import ROOT, LocalCluster

pytestmark = pytest.mark.cluster
#: nothing listens there
DEAD = "http://127.0.0.1:1"
DSS = [sys.executable, "-m", "dss_cli.command_line"]


@dataclass
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Dss = Callable[..., Done]


@pytest.fixture(autouse=True)
def environment(real_node: LocalCluster, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSS_URLS", real_node.nodes[0].url)
    monkeypatch.setenv("DSS_TOKEN", token)


@pytest.fixture
def dss(capsys: pytest.CaptureFixture[str]) -> Dss:
    def call(*arguments: str) -> Done:
        capsys.readouterr()
        status = run(list(arguments))
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return call


@dataclass
class Case:
    """A command, with what it prints for people and the members of its JSON.

    `{n}` in the arguments is another number in each run.
    """

    arguments: str
    shows: str
    members: set[str]
    before: Sequence[str] = field(default_factory=tuple)
    status: int = 0


PUBLISHED = "queue publish t{n} 1"
TAKEN = "queue consume t{n} --group g --no-ack --visibility 60"
MADE = "user create u{n} --group viewer --generate"
HELD = "lock acquire k{n} --client alice"

CASES = [
    Case("status", r"^NODE +STATE +ADDRESS .*\nnode-1  leader .*\nleader: node-1$", {"leader_id", "cluster_version", "nodes"}),
    Case("ready", r"^node-1 is ready; node-1 leads$", {"node", "leader_id", "applied_index"}),
    Case("lock ls", r"k\d+ +exclusive +alice +\d+ .* s$", {"locks"}, [HELD]),
    Case("lock why k{n} --client bob", r"HELD BY.*\nalice +exclusive.*\n\nbob does not wait", {"holders", "why"}, [HELD]),
    Case("lock acquire k{n} --client alice --ttl 0", r"^alice holds k\d+ until it is released, with the fencing token \d+$", {"index"}),
    Case("lock release k{n} --client alice", r"^k\d+ is released; alice held it for ", {"released"}, [HELD]),
    Case("lock release k{n} --force --reason test", r"^k\d+ is taken from alice, which had the fencing token", {"holders"}, [HELD]),
    Case("lock audit", r"k\d+ +alice +\d+ +\S+ +test$", {"forced"}, [HELD, "lock release k{n} --force --reason test --by me"]),
    Case("queue publish t{n} 1 --key k --delay 0.1 --header a=b", r"^\d+-0$", {"msg_id", "partition", "duplicate"}),
    Case("queue consume t{n} --group g", r"^1$", {"msg_id", "value", "key", "headers", "attempt", "receipt"}, [PUBLISHED]),
    Case("queue ls", r"TOPIC +MESSAGES.*\n(?:.*\n)*t\d+ +1 +1 B +1 +0 +0 ", {"topics", "topic_count"}, [PUBLISHED]),
    Case("queue show t{n}", r"^g +0 +0 +1 +0 .*\n\n1 message, 1 B; .*\nmax_attempts=20 ", {"groups", "settings"}, [PUBLISHED, TAKEN]),
    Case("queue peek t{n}", r"MESSAGE .*\n\d+-0 .* 1$", {"msg_id", "value", "key", "published_ms"}, [PUBLISHED]),
    Case("queue peek t{n} --group g", r"^\d+-0 +in_flight +1 .* 1$", {"state", "attempt"}, [PUBLISHED, TAKEN]),
    Case("queue redrive t{n} --group g", r"^0 dead letters put back into the queue$", {"redriven"}, [PUBLISHED, TAKEN]),
    Case("queue purge t{n} --yes", r"^1 message deleted$", {"purged"}, [PUBLISHED]),
    Case("queue set t{n} --max-attempts 3", r"^t\d+: max_attempts=3  backoff_ms=500  ", {"keep_ms"}, ["queue set t{n} --backoff-ms 500"]),
    Case("queue delete t{n} --yes", r"^t\d+ is deleted, with 1 message$", {"deleted"}, [PUBLISHED]),
    Case("queue add-group t{n} g --start first", r"^g is created, with 1 message to finish$", {"created"}, [PUBLISHED]),
    Case("queue delete-group t{n} g --yes", r"^g is deleted$", {"deleted"}, ["queue add-group t{n} g"]),
    Case("cache put c{n} [1,2] --ttl 60 --new", r"^version \d+$", {"version", "state"}),
    Case("cache put c{n} text --text --if-version 0", r"^version \d+$", {"version", "state"}),
    Case("cache get c{n}", r"^\[1,2\]$", {"value", "found", "hit", "state"}, ["cache put c{n} [1,2]"]),
    Case("cache get c{n} --text", r"^text$", {"value"}, ["cache put c{n} text --text"]),
    Case("cache incr c{n} -2 --ttl 60", r"^-2$", {"value", "version"}),
    Case("cache delete c{n}", r"^c\d+ is deleted$", {"deleted"}, ["cache put c{n} 1"]),
    Case("cache trace c{n}", r"^TIME \(UTC\).*\n(?:.*\n)?[\d-]+ [\d:.]+  node-1  I +M +put +\d+$", {"transitions"}, ["cache put c{n} 1"]),
    Case("cache lines c{n}", r"^node-1  c\d+ +[ME] +\d+ +1 B ", {"lines", "unreachable"}, ["cache put c{n} 1"]),
    Case("cache evict c{n}", r"^c\d+ is evicted(, and was written back first)?$", {"evicted"}, ["cache put c{n} 1"]),
    Case("cache stats", r"^NODE .*\nnode-1 +\d+ .* [\d.]+% ", {"nodes"}),
    Case("cache demo c{n} --yes", r"^step .*\n(?:.*\n)*evict on 1 +I .*\n\nM: written here", {"step", "states", "result"}),
    Case("member ls", r"^NODE .*\nnode-1  https?://[\d.:]+  leader  yes  \d to \d$", {"members", "cluster_version"}),
    Case("member add node-{n} http://127.0.0.1:1", r"^node-\d+  http://127.0.0.1:1  \(learner\)$", {"members"}),
    Case("member remove node-{n}", r"^node-1  http", {"members"}, ["member add node-{n} http://127.0.0.1:1"]),
    Case("leader show", r"^node-1$", {"leader_id"}),
    Case("leader transfer node-1", r"^node-1 leads$", {"leader_id"}),
    Case("leader election", r"^node-1 campaigns$", {"node"}),
    Case("token create name{n} --scope all --expires 1d", r"^dss1_\w+$", {"token", "token_id"}),
    Case("token ls", r"^ID +NAME .*\n(?:.*\n)*\w+ +name\d+ +all +.* never ", {"tokens"}, ["token create name{n} --scope all"]),
    Case("user create u{n} --group viewer --generate", r"^[\w-]{16}$", {"name", "group", "password"}),
    Case("user ls", r"^NAME +GROUP +STATE .*\n(?:.*\n)*u\d+ +viewer +active ", {"users"}, [MADE]),
    Case("user change u{n} --group operator --disable", r"^u\d+: operator, disabled$", {"group", "active"}, [MADE]),
    Case("user password u{n} --generate", r"^[\w-]{16}$", {"name", "password"}, [MADE]),
    Case("user sign-out u{n}", r"^u\d+ is signed out on all nodes$", {"generation"}, [MADE]),
    Case("user rm u{n}", r"^deleted$", {"deleted"}, [MADE]),
    Case("audit", r"^\d+ +[\d-]+ [\d:.]+ .* tokens.create ", {"index", "by", "operation"}, ["token create a{n} --scope all"]),
    Case("log show 3", r'^\{\n  "index": 3,', {"index", "term", "kind"}),
    Case("log skip 3 --reason test", "", set(), status=1),
    Case("limits ls", r"^LIMIT .*\n(?:.*\n)*queue_bytes_max +\d+ \(", {"limits", "usage"}),
    Case("limits set cache_keys_max=4000000", r"^cache_keys_max +\d+ +4000000 ", {"limits"}),
    Case("call cache.put key=c{n} value:=[1] ttl_ms=60000", r'^\{"ok":true,"version":', {"version"}),
]  # fmt: skip
#: these have tests of their own
OTHERS = {"token rotate", "token revoke", "lock run", "snapshot save", "snapshot info", "completion", "member replace"}


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def test_every_command_has_a_case() -> None:
    names = {name for name, _ in leaves(root)}
    found = {name for name in names for case in CASES if f"{case.arguments} ".startswith(f"{name} ")}
    assert names - found == OTHERS


def patiently(dss: Dss, *arguments: str) -> Done:
    """Run a command again while the node has done the same a moment ago."""
    deadline = time.monotonic() + 60
    while "(over_limit)" in (done := dss(*arguments)).err or '"code": "over_limit"' in done.err:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return done


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.arguments)
def test_each_command_for_people_and_as_json(case: Case, dss: Dss) -> None:
    number = 10 * CASES.index(case) + 10
    for more in ([], ["--json"]):
        number += 1
        *before, arguments = [text.replace("{n}", str(number)).split() for text in (*case.before, case.arguments)]
        for words in before:
            prepared = dss(*words)
            assert prepared.status == 0, prepared.err
        done = patiently(dss, *arguments, *more)
        assert done.status == case.status, done.err
        assert done.err.startswith("cluster at http")
        if case.status:
            continue
        if more:
            assert done.documents
            for document in done.documents:
                assert case.members <= document.keys()
        else:
            assert re.search(case.shows, done.out, flags=re.MULTILINE), done.out
            assert max(map(len, done.out.splitlines())) <= 150


def test_a_backup_is_saved_and_checked(dss: Dss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "dss.backup")
    saved = patiently(dss, "snapshot", "save", file, "--json")
    assert saved.status == 0, saved.err
    monkeypatch.delenv("DSS_URLS")
    (document,) = saved.documents
    assert dss("snapshot", "info", file, "--json").documents == [document]
    assert re.search(r"^SHA-256 +\w+  \(correct\)$", dss("snapshot", "info", file).out, flags=re.MULTILINE)
    again = dss("snapshot", "save", file)
    assert (again.status, again.err.splitlines()[-1]) == (1, f"dss: {file} exists: choose another name, or delete it first")
    Path(file).write_bytes(b"something else")
    assert dss("snapshot", "info", file).err == f"dss: {file} is not a backup of a cluster\n"
    assert dss("snapshot", "info", file + "x").err == f"dss: {file}x: No such file or directory\n"


def test_a_token_is_rotated_and_revoked(dss: Dss) -> None:
    (made,) = dss("token", "create", "short", "--scope", "locks:a", "--json").documents
    (rotated,) = dss("token", "rotate", made["token_id"], "--overlap", "1h", "--json").documents
    assert made["token"] != rotated["token"]
    refused = dss("lock", "acquire", "b", "--client", "c", "--token", rotated["token"])
    assert (refused.status, "(forbidden)" in refused.err) == (1, True)
    assert dss("token", "revoke", made["token_id"]).out == "revoked\n"
    again = dss("token", "revoke", made["token_id"], "--quiet")
    assert (again.status, again.err) == (1, f"dss: there is no token {made['token_id']}\n")
    assert dss("lock", "ls", "--token", rotated["token"]).status == 1


def test_messages_are_read_from_standard_input(dss: Dss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert len(dss("queue", "publish", "lines", "--lines", "--text").out.split()) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO('{"three": 3}'))
    assert dss("queue", "publish", "lines", "--dedup-id", "d").status == 0
    assert dss("queue", "publish", "lines", "4", "--dedup-id", "d").out.endswith(" duplicate\n")
    assert dss("queue", "consume", "lines", "--group", "g", "--until-empty", "--text").out == 'one\ntwo\n{"three":3}\n'
    empty = dss("queue", "consume", "lines", "--group", "g", "--quiet")
    assert (empty.status, empty.err) == (1, "dss: no message of lines is ready for g\n")


def test_a_command_is_run_for_each_message(dss: Dss, tmp_path: Path) -> None:
    dss("queue", "publish", "work", '{"a":"\u00e9"}', "--key", "k")
    program = f"import os, sys; open({str(tmp_path / 'got')!r}, 'w').write(sys.stdin.read() + os.environ['DSS_MESSAGE_KEY'])"
    done = dss("queue", "consume", "work", "--group", "g", "--limit", "1", "--", sys.executable, "-c", program)
    assert (done.status, done.err.splitlines()[-1]) == (0, "1 done, 0 failed")
    assert (tmp_path / "got").read_text() == '{"a":"\u00e9"}k'


def test_dead_letters_go_back(dss: Dss) -> None:
    dss("queue", "publish", "dead", "1")
    (taken,) = dss("queue", "consume", "dead", "--group", "g", "--no-ack", "--json").documents
    assert dss("call", "queue.nack", "topic=dead", "group=g", f"msg_id={taken['msg_id']}", "dead=true").status == 0
    assert re.search(r"dead: rejected +1 .* 1$", dss("queue", "peek", "dead", "--group", "g", "--dead").out, flags=re.MULTILINE)
    assert dss("queue", "redrive", "dead", "--group", "g").out == "1 dead letter put back into the queue\n"


def test_why_a_client_waits(dss: Dss) -> None:
    for key, client in (("a", "alice"), ("b", "bob")):
        assert dss("lock", "acquire", key, "--client", client).status == 0
    with subprocess.Popen([*DSS, "lock", "acquire", "b", "--client", "alice", "--wait", "20"]) as waiting:
        deadline = time.monotonic() + 60
        while not dss("lock", "why", "b", "--json").documents[0]["waiters"]:
            assert time.monotonic() < deadline
        shown = dss("lock", "why", "a").out
        assert "\nalice itself waits for b, which bob holds\n" in shown
        shown = dss("lock", "why", "b", "--client", "alice").out
        assert re.search(r"^1\. alice +exclusive .* b$", shown, flags=re.MULTILINE)
        assert shown.endswith("alice is number 1 in the queue:\n  alice waits for b: bob holds it\n")
        deadlock = dss("lock", "acquire", "a", "--client", "bob", "--wait", "20")
        assert (deadlock.status, "(deadlock)" in deadlock.err) == (1, True)
        dss("lock", "release", "b", "--client", "bob")
        assert waiting.wait(60) == 0


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("statu", "dss: No such command 'statu'. "),
        ("status --wach", "dss status: No such option '--wach'. "),
        ("lock ls --timeout soon", "dss lock ls: Invalid value for '--timeout': 'soon' is not a number of seconds. "),
        ("lock ls --timeout 0", "dss lock ls: Invalid value for '--timeout': 0 is not more than 0 seconds. "),
        ("lock run key", "dss lock run: Missing argument '-- COMMAND…'. "),
        ("lock release key", "dss lock release: Say whose lock it is with --client, or take it away with --force and --reason. "),
        ("lock release key --force", "dss lock release: --force needs --reason. "),
        ("lock acquire key --client c --wait 21", "'--wait': 21 is not at least 0 and at most 20 seconds. "),
        ("queue publish topic {not", "dss: VALUE is not JSON (use --text for plain text): "),
        ("queue publish topic 1 --header x", "dss: --header must be NAME=TEXT, not 'x'"),
        ("queue publish topic 1 --lines", "dss queue publish: --lines reads messages from standard input and cannot"),
        ("queue consume topic --group g -- no-such-command", "dss queue consume: Command not found: 'no-such-command'. "),
        ("queue consume topic --group g --follow -- true", "dss queue consume: --follow cannot be combined with a command. "),
        ("queue peek topic --dead", "dss queue peek: --dead needs --group"),
        ("queue purge topic", "dss queue purge: Delete all messages of topic? Confirm with --yes. "),
        ("limits set many", "dss limits set: A limit must be NAME=NUMBER, not 'many'. "),
        ("call nope", "dss: there is no operation 'nope'"),
        ("call health x", "dss: a field must be NAME=TEXT or NAME:=JSON, not 'x'"),
        ("call health x:=y", "dss: the field x is not JSON: "),
        ("token create n --scope all --expires soon", "dss: a time must be like 90d, 12h or 30m, not 'soon'"),
        ("status --url ftp://x", "dss: an address must be like http://127.0.0.1:8101, not 'ftp://x'"),
        ("status --token \u00e9", "dss: `token` has characters that an HTTP header cannot have"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: str, error: str, dss: Dss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    done = dss(*arguments.split())
    said = [line for line in done.err.splitlines() if not line.startswith("cluster at")]
    assert (done.status, done.out, len(said)) == (2, "", 1)
    assert error in said[0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("cache get nothing-here", "nothing-here has no value"),
        ("cache put topic\n 1", "(invalid)"),
        ("cache put key 1 --if-version 7", "(version_conflict)"),
        ("queue show nothing-here", "there is no topic nothing-here"),
        ("lock release nothing-here --client c", "c does not hold nothing-here"),
        ("lock release nothing-here --force --reason r", "no client holds nothing-here"),
        (
            "lock release nothing-here --force --fencing-token 7 --reason r",
            "no client holds nothing-here with the fencing token 7",
        ),
        ("log show 999999", "(not_found)"),
        ("limits set nothing_here=1", "(invalid)"),
        ("status --token wrong", "(unauthenticated). Set DSS_TOKEN, or give --token"),
    ],
)
def test_a_refusal_is_one_line_and_status_1(arguments: str, error: str, dss: Dss) -> None:
    words = [word.replace("\\n", "\n") for word in arguments.split(" ")]
    done = dss(*words, "--quiet")
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert error in done.err
    as_json = dss(*words, "--quiet", "--json")
    problem = json.loads(as_json.err)
    assert (as_json.status, problem["ok"], bool(problem["detail"])) == (1, False, True)


def test_a_refusal_names_the_holders(dss: Dss) -> None:
    dss("lock", "acquire", "mine", "--client", "alice")
    done = dss("lock", "acquire", "mine", "--client", "bob", "--quiet")
    assert (done.status, done.err) == (1, "dss: The lock is held by another client (held). Held by alice\n")
    problem = json.loads(dss("lock", "acquire", "mine", "--client", "bob", "--quiet", "--json").err)
    assert (problem["code"], problem["holders"][0]["client"]) == ("held", "alice")


def test_no_node_answers(dss: Dss) -> None:
    done = dss("queue", "ls", "--url", DEAD, "--timeout", "0.2")
    assert (done.status, done.out) == (3, "")
    assert done.err.splitlines() == [
        f"cluster at {DEAD}",
        f"no answer from {DEAD}: connection refused",
        f"dss: queue.stats: no node carried it out in time ({DEAD}: connection refused)",
    ]
    assert dss("status", "--url", DEAD).status == 3


async def test_what_other_clients_in_the_process_log_is_not_shown() -> None:
    said: list[str] = []
    async with Cluster([DEAD], "", said.append):
        log = logging.getLogger("dss_client")
        log.warning("the client of the command")
        await asyncio.to_thread(log.warning, "another one")
    assert said == ["the client of the command"]


def test_the_next_node_is_tried(dss: Dss, real_node: LocalCluster) -> None:
    url = real_node.nodes[0].url
    done = dss("--url", f"{DEAD},{url}", "leader", "show")
    assert (done.status, done.out) == (0, "node-1\n")
    assert done.err.splitlines() == [f"cluster at {DEAD}", f"no answer from {DEAD}: connection refused"]


def test_the_cluster_of_make_run_is_found(
    dss: Dss, real_node: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dss_cli.find_cluster import LocalMember, write_file

    node = real_node.nodes[0]
    directory = tmp_path / ".dss" / "cluster-of-1"
    directory.mkdir(parents=True)
    write_file(directory, [LocalMember("node-1", node.url, 4711)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSS_URLS")
    for name in ("DSS_URL", "RPC_HOST", "RPC_PORT", "PEERS"):
        monkeypatch.delenv(name, raising=False)
    done = dss("status")
    assert done.err.splitlines()[0] == f"cluster at {node.url} (.dss/cluster-of-1)"
    assert re.search(r"^node-1 +leader +4711 +http", done.out, flags=re.MULTILINE), "with the process id"


def test_over_http(dss: Dss) -> None:
    assert dss("--http", "leader", "show").out == "node-1\n"
    assert dss("leader", "show", "--http", "--token", "wrong").status == 1


def interrupted(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> tuple[str, str]:
    process.send_signal(number)
    return process.communicate(timeout=60)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*DSS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_watch_prints_a_line_each_time_until_ctrl_c() -> None:
    process = start("status", "--watch", "--interval", "0.05", "--json", "--quiet")
    assert process.stdout is not None
    for _ in range(3):
        assert json.loads(process.stdout.readline())["leader_id"] == "node-1"
    _, err = interrupted(process)
    assert (process.returncode, err.strip()) == (130, "")


def test_locks_are_watched_until_ctrl_c(dss: Dss) -> None:
    process = start("lock", "ls", "watched/", "--watch", "--json", "--quiet")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["kind"] == "state"
    dss("lock", "acquire", "watched/1", "--client", "alice")
    event = json.loads(process.stdout.readline())
    assert (event["kind"], event["key"], event["client"]) == ("granted", "watched/1", "alice")
    _, err = interrupted(process)
    assert (process.returncode, err.strip()) == (130, "")


def test_a_pipe_that_is_closed_ends_it_quietly() -> None:
    process = start("status", "--watch", "--interval", "0.05", "--quiet")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_each_help_text_fits_100_columns(dss: Dss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert dss().status == 2
    for name, command in [("", root), *leaves(root)]:
        done = dss(*name.split(), "--help")
        assert (done.status, done.err) == (0, "")
        assert max(map(len, done.out.splitlines())) <= 90, name
        assert not re.search(r"\w\.\.\.$", done.out, flags=re.MULTILINE), f"a summary of {name or 'dss'} is cut"
        assert command.help


def test_the_shells_complete_commands(dss: Dss) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_DSS_COMPLETE" in dss("completion", shell).out
    environment = {**os.environ, "_DSS_COMPLETE": "bash_complete", "COMP_WORDS": "dss call queue.p", "COMP_CWORD": "2"}
    program = "from dss_cli.command_line import main; import sys; sys.argv = ['dss']; main()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,queue.publish", "plain,queue.peek", "plain,queue.purge"]


def test_only_http_loads_its_library() -> None:
    """It takes longer to load than the rest of the client."""
    program = "import sys, dss_client as d; a = 'httpx' in sys.modules; d.Client('http://a:1', transport='http').close()"
    program += "; print(a, 'httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "False True\n", done.stderr


def test_help_and_completion_do_not_load_the_client() -> None:
    program = "import sys; from dss_cli.commands import run; run(['lock', 'run', '--help']); print('dss_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_the_commands_of_the_readme(real_node: LocalCluster, tmp_path: Path) -> None:
    (block,) = re.findall(r"^```sh\n(export PATH.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(["bash", "-e"], input=block, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    for expected in ("leader: node-1", "one at a time", '{"order":43}', "precious is not held", "TIME (UTC)"):
        assert expected in done.stdout
