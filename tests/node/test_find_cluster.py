"""How a command finds its cluster: by --url, by this node's settings in the environment, by the files of `make run`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from dss_api import find_cluster
from dss_api.client import CallFailed, Client
from dss_api.find_cluster import (
    CannotChoose,
    LocalMember,
    cluster_urls,
    remove_file,
    running_clusters,
    without_repeats,
    write_file,
)
from dss_project.config import NodeConfig

#: nothing listens there
DEAD = "http://127.0.0.1:1"
Answer = tuple[int, dict[str, object]]


@contextmanager
def serving(answer: Callable[[], Answer] = lambda: (200, {"ok": True})) -> Iterator[str]:
    """An HTTP server that gives the same answer to every call; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, document = answer()
            body = msgspec.json.encode(document)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def describe(clusters: Path, name: str, *urls: str) -> Path:
    directory = clusters / name
    directory.mkdir()
    write_file(directory, [LocalMember(f"node-{number}", url, 1) for number, url in enumerate(urls, 1)])
    return directory


def of_a_dead_process(directory: Path) -> None:
    """As if the process that wrote the file had been killed."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    file = directory / find_cluster.FILE_NAME
    file.write_text(file.read_text().replace(f'"pid":{os.getpid()}', f'"pid":{ended.pid}'))


def find(clusters: Path, *given: str, **environ: str) -> tuple[list[str], list[str]]:
    """The addresses, and the lines that were printed."""
    said: list[str] = []
    return cluster_urls(given, NodeConfig.from_env(environ), said.append, clusters, environ), said


def test_the_given_address_wins(tmp_path: Path) -> None:
    urls, said = find(tmp_path, "http://a:1/,http://b:2", "http://c:3", RPC_PORT="8000")
    assert urls == ["http://a:1", "http://b:2", "http://c:3"]
    assert said == ["cluster at http://a:1"]


def test_then_the_address_in_the_environment(tmp_path: Path) -> None:
    with serving() as url:
        describe(tmp_path, "cluster-of-1", url)
        urls, said = find(tmp_path, RPC_PORT="8000", PEERS="http://b:8001/b")
    assert urls == ["http://127.0.0.1:8000", "http://b:8001"]
    assert said == ["cluster at http://127.0.0.1:8000 (from RPC_PORT)"]


def test_then_the_cluster_of_make_run(tmp_path: Path) -> None:
    with serving() as url:
        directory = describe(tmp_path, "cluster-of-3", DEAD, url)
        urls, said = find(tmp_path)
        assert urls == [DEAD, url]
        assert said == [f"cluster at {DEAD} ({directory})"]
        remove_file(directory)
        assert running_clusters(tmp_path) == {}


def test_several_clusters_are_listed(tmp_path: Path) -> None:
    with serving() as one, serving() as other:
        describe(tmp_path, "cluster-of-1", one)
        describe(tmp_path, "cluster-of-3", other)
        with pytest.raises(CannotChoose) as caught:
            find(tmp_path)
    for expected in (f"--url {one}", f"--url {other}", "cluster-of-1", "cluster-of-3"):
        assert expected in str(caught.value)


def test_a_file_that_was_left_behind_does_not_count(tmp_path: Path) -> None:
    of_a_dead_process(describe(tmp_path, "cluster-of-1", DEAD))
    with serving() as url:
        describe(tmp_path, "cluster-of-3", url)
        assert find(tmp_path)[0] == [url]
    of_a_dead_process(tmp_path / "cluster-of-3")
    assert find(tmp_path)[0] == ["http://127.0.0.1:8201"]


def test_a_cluster_that_is_starting_is_found(tmp_path: Path) -> None:
    describe(tmp_path, "cluster-of-3", DEAD)
    assert find(tmp_path)[0] == [DEAD]


@pytest.mark.parametrize("text", ["", "{", '{"version":0,"pid":1,"nodes":[]}', '{"version":1,"pid":1,"nodes":[]}'])
def test_another_file_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / find_cluster.FILE_NAME).write_text(text)
    urls, said = find(tmp_path)
    assert urls == ["http://127.0.0.1:8201"]
    assert "the default: no cluster of `make run` runs in" in said[0]


def test_a_node_that_does_not_answer_is_followed_by_the_next() -> None:
    said: list[str] = []
    with serving() as url:
        assert Client([DEAD, url], say=said.append).call("GET", "/health", patience_s=0) == {"ok": True}
    assert said == [f"No answer from {DEAD}: Connection refused; trying {url}"]


def test_it_says_what_it_waits_for() -> None:
    said: list[str] = []
    answers: list[Answer] = [(503, {"code": "no_leader", "detail": "no leader is known"})] * 3 + [(200, {"ok": True})]
    with serving(lambda: answers.pop(0)) as url:
        assert Client([url, DEAD], say=without_repeats(said.append)).post("/x", {}, dict) == {"ok": True}
    assert said[0] == "waiting for a leader …"
    assert len(said) < 3
    with pytest.raises(OSError, match=f"No answer from {DEAD}"):
        Client([DEAD], say=said.append).call("GET", "/x", patience_s=0.15)
    assert said[-1] == "no node answers yet; retrying …"


def test_a_call_that_may_have_had_an_effect_is_not_sent_again() -> None:
    calls: list[Answer] = [(503, {"code": "unknown_outcome", "detail": "nobody knows"}), (200, {})]
    with serving(lambda: calls.pop(0)) as url:
        with pytest.raises(CallFailed, match="nobody knows"):
            Client([url]).call("POST", "/x", {}, may_repeat=False)
        assert len(calls) == 1
    answers: list[Answer] = [(503, {"code": "no_leader"}), (200, {"ok": True})]
    with serving(lambda: answers.pop(0)) as url:
        assert Client([url]).call("POST", "/x", {}, may_repeat=False) == {"ok": True}


def test_an_answer_of_another_program_is_refused() -> None:
    with serving(lambda: (404, {})) as url, pytest.raises(CallFailed, match="status 404"):
        Client([url]).call("GET", "/raft/status")
