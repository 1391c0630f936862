"""How a command finds its cluster: by --url, by this node's settings in the environment, by the files of `make run`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dss_api.token_text import KEY_HOLDER, is_secret, split, token_key
from dss_cli import find_cluster
from dss_cli.find_cluster import (
    CannotChoose,
    LocalMember,
    cluster_urls,
    node_addresses,
    remove_file,
    running_clusters,
    token_of,
    write_file,
)
from dss_project.config import NodeConfig

#: nothing listens there
DEAD = "http://127.0.0.1:1"


@contextmanager
def serving() -> Iterator[str]:
    """An HTTP server that answers every call; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"ok":true}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

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
    return cluster_urls(given, said.append, clusters, environ), said


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


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RPC_PORT": "8000"},
        {"RPC_HOST": "0.0.0.0", "RPC_PORT": "8000", "NODE_ID": "node-7", "DSS_CLUSTER_SECRET": "x" * 32},
        {"RPC_HOST": "::1", "RPC_PORT": "8000"},
        {"DSS_URL": "http://example:1/"},
        {"NODE_ID": "b", "PEERS": "http://a:8001/a, http://b:8002/b,http://c:8003/c", "RPC_PORT": "8002"},
        {"NODE_ID": "d", "PEERS": "http://a:8001/a,http://c:8003/c"},
    ],
)
def test_the_node_of_the_environment_is_the_one_that_the_settings_describe(environ: dict[str, str]) -> None:
    config = NodeConfig.from_env(environ)
    assert node_addresses(environ) == [config.url, *(peer.url for peer in config.peers)]


def test_the_addresses_for_programs_come_before_those_of_a_node(tmp_path: Path) -> None:
    urls, said = find(tmp_path, DSS_URLS="http://a:1/, http://b:2", RPC_PORT="8000")
    assert urls == ["http://a:1", "http://b:2"]
    assert said == ["cluster at http://a:1 (from DSS_URLS)"]


def test_the_token_is_that_of_a_program_or_of_a_node_or_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("in-a-file\n")
    assert token_of(tmp_path, {"DSS_API_TOKEN": "n", "DSS_TOKEN": "p"}) == "p"
    assert token_of(tmp_path, {"DSS_API_TOKEN": "n", "DSS_TOKEN": ""}) == "n"
    assert token_of(tmp_path, {"DSS_API_TOKEN_FILE": str(file)}) == "in-a-file"
    with pytest.raises(OSError, match="none"):
        token_of(tmp_path, {"DSS_TOKEN_FILE": str(tmp_path / "none")})


def test_without_a_token_the_secret_of_the_cluster_is_proved(tmp_path: Path) -> None:
    def is_proof(token: str, secret: str) -> bool:
        token_id, proof = split(token) or ("", "")
        return token_id.startswith(KEY_HOLDER) and is_secret(proof, token_key(secret), token_id, 0)

    nothing = {"DSS_DATA_DIR": str(tmp_path / "data")}
    assert token_of(tmp_path, nothing) == ""
    assert is_proof(token_of(tmp_path, {**nothing, "DSS_CLUSTER_SECRET": "s"}), "s")
    assert is_proof(token_of(tmp_path, {**nothing, "DSS_CLUSTER_SECRET": "s", "DSS_TOKEN_KEY": "k"}), "k")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "token-key").write_text("own")
    assert is_proof(token_of(tmp_path, nothing), "own")
    (tmp_path / "cluster-secret").write_text("local")
    with serving() as url:
        describe(tmp_path, "cluster-of-1", url)
        assert is_proof(token_of(tmp_path, nothing), "local")
        assert is_proof(token_of(tmp_path, {**nothing, "RPC_PORT": "1"}), "own"), "the environment describes another node"
