"""A node reports wrong settings before it starts, and names the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from dss_api.tls import TlsFiles
from dss_project.config import ConfigError, NodeConfig, settings_table, unknown_variables
from dss_raft.versions import LATEST

PEERS = "http://node-2:8102/node-2,http://node-3:8103/node-3"


def read(**environ: str) -> NodeConfig:
    return NodeConfig.from_env(environ)


def test_nothing_set_is_one_node_on_loopback() -> None:
    config = read()
    assert (config.node_id, config.rpc_host, config.rpc_port, config.peers) == ("node-1", "127.0.0.1", 8201, ())
    assert (config.peer_host, config.peer_port) == ("127.0.0.1", 9201)
    assert (config.cache_memory, config.server, config.url) == ("django", "daphne", "http://127.0.0.1:8201")
    assert config.data_dir == str(Path(".dss/node-1").absolute())


def test_peers() -> None:
    config = read(PEERS=PEERS, DSS_PEER_PORT_OFFSET="500", RPC_PORT="8101")
    assert [(peer.id, peer.url, peer.host, peer.peer_port) for peer in config.peers] == [
        ("node-2", "http://node-2:8102", "node-2", 8602),
        ("node-3", "http://node-3:8103", "node-3", 8603),
    ]
    assert config.peer_port == 8601
    assert {"node-1", "node-2", "node-3", "localhost"} <= set(config.allowed_hosts)


def test_peers_may_name_the_node_itself() -> None:
    config = read(PEERS=PEERS, NODE_ID="node-3", RPC_HOST="0.0.0.0", DSS_CLUSTER_SECRET="s" * 16)
    assert [peer.id for peer in config.peers] == ["node-2"]
    assert config.url == "http://node-3:8103"


def test_empty_is_unset() -> None:
    assert read(RPC_PORT="", REDIS_URL=" ", DSS_CLUSTER_SECRET="") == read()


def test_redis_is_the_backing_store_when_its_address_is_given() -> None:
    assert read(REDIS_URL="redis://localhost:6379/0").cache_memory == "redis"
    assert read(REDIS_URL="redis://localhost:6379/0", DSS_CACHE_MEMORY="django").cache_memory == "django"


@pytest.mark.parametrize(
    ("environ", "variable", "words"),
    [
        ({"RPC_PORT": "http"}, "RPC_PORT", "whole number"),
        ({"RPC_PORT": "0"}, "RPC_PORT", "from 1 to 65535"),
        ({"RPC_PORT": "65000"}, "RPC_PORT", "DSS_PEER_PORT_OFFSET"),
        ({"DSS_CLUSTER_VERSION_MAX": "0"}, "DSS_CLUSTER_VERSION_MAX", f"from 1 to {LATEST}"),
        ({"DSS_CLUSTER_VERSION_MAX": str(LATEST + 1)}, "DSS_CLUSTER_VERSION_MAX", f"from 1 to {LATEST}"),
        ({"NODE_ID": "a/b"}, "NODE_ID", "letters"),
        ({"PEERS": "node-2:8102"}, "PEERS", "http://node-2:8102/node-2"),
        ({"PEERS": "http://node-2/node-2"}, "PEERS", "http://node-2:8102/node-2"),
        ({"PEERS": "http://node-2:8102"}, "PEERS", "http://node-2:8102/node-2"),
        ({"PEERS": "http://node-2:x/node-2"}, "PEERS", "http://node-2:8102/node-2"),
        ({"PEERS": "http://a:1/n,http://b:2/n"}, "PEERS", "twice"),
        ({"RAFT_ELECTION_MIN_MS": "150"}, "RAFT_ELECTION_MIN_MS", "RAFT_HEARTBEAT_MS"),
        ({"RAFT_ELECTION_MAX_MS": "500"}, "RAFT_ELECTION_MAX_MS", "RAFT_ELECTION_MIN_MS"),
        ({"QUEUE_NUM_VNODES": "-1"}, "QUEUE_NUM_VNODES", "from 1"),
        ({"DSS_SERVER": "gunicorn"}, "DSS_SERVER", "daphne, uvicorn"),
        ({"DSS_CACHE_MEMORY": "redis"}, "REDIS_URL", "missing"),
        ({"REDIS_URL": "http://localhost"}, "REDIS_URL", "redis://"),
        ({"REDIS_URL": "redis+cluster://h:7000/1"}, "REDIS_URL", "only database 0"),
        ({"REDIS_URL": "redis+sentinel://h:26379"}, "REDIS_URL", "must name the primary"),
        ({"REDIS_URL": "rediss://h?ssl_ca_certs=/nowhere"}, "REDIS_URL", "cannot be read"),
        ({"DSS_ENGINE_URL": "http://h"}, "DSS_ENGINE_URL", "redis://"),
        ({"DSS_ENGINE_URL": "redis+sentinel://h/name"}, "DSS_ENGINE_URL", "must name a server or nodes of a Cluster"),
        ({"DSS_ENGINE_URL": "unix:///run/redis.sock"}, "DSS_ENGINE_URL", "must name a server or nodes of a Cluster"),
        ({"DSS_ENGINE_REPLICAS_MIN": "6"}, "DSS_ENGINE_REPLICAS_MIN", "from 0 to 5"),
        ({"DSS_ENGINE_KEYSPACE": "a/b"}, "DSS_ENGINE_KEYSPACE", "letters"),
        ({"DSS_CACHE_REDIS_TIMEOUT_MS": "0"}, "DSS_CACHE_REDIS_TIMEOUT_MS", "from 50"),
        ({"DSS_CACHE_REDIS_CONNECTIONS_MAX": "0"}, "DSS_CACHE_REDIS_CONNECTIONS_MAX", "from 1"),
        ({"DSS_DEBUG": "perhaps"}, "DSS_DEBUG", "true or false"),
        ({"DSS_LAB_URL": "javascript:alert(1)"}, "DSS_LAB_URL", "http://127.0.0.1:8100"),
        ({"DSS_PEER_PORT": "8201"}, "DSS_PEER_PORT", "another port"),
        ({"DSS_SQS_PORT": "8201"}, "DSS_SQS_PORT", "another port"),
        ({"DSS_SQS_PORT": "9201"}, "DSS_SQS_PORT", "another port"),
        ({"DSS_BODY_BYTES_MAX": "2048"}, "DSS_BODY_BYTES_MAX", "DSS_VALUE_BYTES_MAX"),
        ({"DSS_CLUSTER_SECRET_PREVIOUS": "x"}, "DSS_CLUSTER_SECRET", "missing"),
        ({"DSS_PEER_TLS": "false", "RPC_HOST": "::", "DSS_CLUSTER_SECRET": "s" * 16}, "DSS_PEER_TLS", "loopback only"),
        ({"DSS_PEER_CERTIFICATE_FILE": "c"}, "DSS_PEER_KEY_FILE and DSS_PEER_CA_FILE", "missing"),
        ({"DSS_PEER_CA_FILE": "c", "DSS_PEER_KEY_FILE": "k"}, "DSS_PEER_CERTIFICATE_FILE", "missing"),
        ({"DSS_PEER_CRL_FILE": "c"}, "DSS_PEER_CRL_FILE", "needs"),
    ],
)
def test_a_bad_value(environ: dict[str, str], variable: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NodeConfig.from_env(environ)
    assert len(caught.value.faults) == 1
    assert variable in caught.value.faults[0]
    assert words in caught.value.faults[0]


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read(RPC_PORT="x", NODE_ID="a b", DSS_SERVER="x")
    assert [fault.split()[0] for fault in caught.value.faults] == ["NODE_ID", "RPC_PORT", "DSS_SERVER"]


@pytest.mark.parametrize(
    "environ", [{"RPC_HOST": "0.0.0.0"}, {"RPC_HOST": "node-1"}, {"DSS_PEER_HOST": "10.0.0.5"}, {"RPC_HOST": "::"}]
)
def test_beyond_loopback_a_secret_is_required(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"DSS_CLUSTER_SECRET is missing.*beyond loopback.*peer port"):
        NodeConfig.from_env(environ)
    with pytest.raises(ConfigError, match="DSS_CLUSTER_SECRET must have at least 16 characters"):
        NodeConfig.from_env({**environ, "DSS_CLUSTER_SECRET": "s" * 15})
    assert NodeConfig.from_env({**environ, "DSS_CLUSTER_SECRET": "s" * 16}).cluster_secret == "s" * 16


@pytest.mark.parametrize(
    "url", ["http://:geheim@host", "redis://:geheim#1@host", "redis://:geheim/1@host", "redis://u:geheim@host:x"]
)
def test_no_fault_shows_a_password(url: str) -> None:
    with pytest.raises(ConfigError, match="REDIS_URL") as caught:
        read(REDIS_URL=url)
    assert "geheim" not in str(caught.value)


def test_files_for_links_are_settings_and_not_misspelt_ones() -> None:
    assert unknown_variables({f"DSS_PEER_{name}_FILE": "x" for name in ("CERTIFICATE", "KEY", "CA", "CRL")}) == {}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_on_loopback_no_secret_is_required(host: str) -> None:
    assert read(RPC_HOST=host).cluster_secret == ""


def test_secrets_from_files(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("from a file\n")
    assert read(DSS_CLUSTER_SECRET_FILE=str(file)).cluster_secret == "from a file"
    with pytest.raises(ConfigError, match="DSS_CLUSTER_SECRET is set twice"):
        read(DSS_CLUSTER_SECRET_FILE=str(file), DSS_CLUSTER_SECRET="x")
    with pytest.raises(ConfigError, match="DSS_API_TOKEN cannot read the file that DSS_API_TOKEN_FILE names"):
        read(DSS_API_TOKEN_FILE=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DSS_CLUSTER_SECERT", "DSS_CLUSTER_SECRET"),
        ("DSS_API_TOKN", "DSS_API_TOKEN"),
        ("DSS_API_TOKN_FILE", "DSS_API_TOKEN_FILE"),
        ("DSS_COLOUR", ""),
        ("RAFT_HEARTBEAT", "RAFT_HEARTBEAT_MS"),
        ("NODEID", "NODE_ID"),
        ("node_id", "NODE_ID"),
        ("RCP_PORT", "RPC_PORT"),
        ("PEER", "PEERS"),
        ("QUEUE_VISIBILITY_TIMEOUT", "QUEUE_VISIBILITY_TIMEOUT_MS"),
    ],
)
def test_misspelt_settings_are_found(name: str, meant: str) -> None:
    assert unknown_variables({name: "x", "HOME": "/"}) == {name: meant}


def test_settings_and_variables_of_other_programs_are_not_reported() -> None:
    others = ("HOME", "HOST", "PORT", "NODE_ENV", "NODE_IP", "NODE_PATH", "HTTP_PORT", "REDIS_HOST", "REDIS_PORT", "CACHE_DIR")
    known = ("DSS_API_TOKEN_FILE", "DSS_SERVER", "RPC_PORT")
    assert unknown_variables(dict.fromkeys((*others, *known), "x")) == {}


def test_the_table_has_every_setting_once() -> None:
    rows = settings_table()
    assert len({row.variable for row in rows}) == len(rows)
    assert all(row.meaning for row in rows)
    assert {row.variable: row.default for row in rows}["RPC_PORT"] == "`8201`"


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({"DSS_TLS_CERT_FILE": "c"}, "belong together"),
        ({"DSS_TLS_KEY_FILE": "k"}, "belong together"),
        ({"DSS_TLS_CLIENT_CA_FILE": "ca"}, "DSS_TLS_CLIENT_CA_FILE needs DSS_TLS_CERT_FILE"),
        ({"DSS_TLS_CERT_FILE": "c", "DSS_TLS_KEY_FILE": "k", "DSS_TLS_CRL_FILE": "crl"}, "DSS_TLS_CRL_FILE needs"),
        ({"DSS_TLS_MIN_VERSION": "1.1"}, "DSS_TLS_MIN_VERSION must be one of 1.2, 1.3"),
        ({"DSS_TLS_CERT_FILE": "c", "DSS_TLS_KEY_FILE": "k", "DSS_URL": "http://a:1"}, "http://a:1 must begin with https://"),
        (
            {"DSS_TLS_CERT_FILE": "c", "DSS_TLS_KEY_FILE": "k", "PEERS": "http://a:1/node-1"},
            "http://a:1 must begin with https://",
        ),
        ({"DSS_URL": "https://a:1"}, "https://a:1 must begin with http://"),
    ],
)
def test_tls_settings_that_do_not_go_together(environment: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        NodeConfig.from_env(environment)


def test_tls_settings() -> None:
    given = {"DSS_TLS_CERT_FILE": "/c", "DSS_TLS_KEY_FILE": "/k", "PEERS": "https://b:8102/node-2,http://c:8103/node-3"}
    config = NodeConfig.from_env(given)
    assert config.url == "https://127.0.0.1:8201"
    assert config.tls == TlsFiles(certificate="/c", key="/k")
    assert [peer.url for peer in config.peers] == ["https://b:8102", "http://c:8103"]
    assert NodeConfig.from_env({}).tls is None
    assert unknown_variables({**given, "DSS_CA_FILE": "/a"}) == {}
    assert unknown_variables({"DSS_TLS_CERT_FLE": "/c"}) == {"DSS_TLS_CERT_FLE": "DSS_TLS_CERT_FILE"}
