"""A primary, its replicas and Sentinels on this machine, for tests: real processes that can be killed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from dss_dev.local_cluster import HOST, free_ports
from dss_dev.valkey_server import CHANGE_S, Server, ServerGroup, wait_until


class SentinelGroup(ServerGroup):
    """One primary with replicas, and Sentinels that let a replica take over when it is away.

    Attributes:
        ports: of the primary at the start, and of the replicas.
        sentinel_ports: of the Sentinels.

    Args:
        directory: the data and logs of the processes, `<directory>/<port>`.
        service: the name of the primary for the Sentinels.
        down_after_ms: after this time without an answer, the primary counts as away.
        settings: further lines of the configuration of primary and replicas.
        sentinel_settings: further lines of the configuration of the Sentinels, which stand before those that name the primary.
        connection, sentinel_connection: how clients connect if they need more than the address, such as `password`.
    """

    def __init__(
        self,
        directory: Path,
        sentinels: int = 3,
        replicas: int = 1,
        *,
        service: str = "values",
        down_after_ms: int = 1000,
        settings: Mapping[str, str] | None = None,
        sentinel_settings: Mapping[str, str] | None = None,
        connection: Mapping[str, object] | None = None,
        sentinel_connection: Mapping[str, object] | None = None,
    ) -> None:
        ports = free_ports(1 + replicas + sentinels)
        self.service = service
        self.ports, self.sentinel_ports = ports[: 1 + replicas], ports[1 + replicas :]
        self._servers = {}
        for port in self.ports:
            own = {"port": str(port), "save": '""', "appendonly": "yes", "repl-diskless-sync-delay": "0"}
            replica = {} if port == self.ports[0] else {"replicaof": f"{HOST} {self.ports[0]}"}
            self._servers[port] = Server(
                directory / str(port), port, {**own, **(settings or {}), **replica}, connection=connection
            )
        about = f"sentinel {{}} {service}"
        for port in self.sentinel_ports:
            sentinel = {
                "port": str(port),
                **(sentinel_settings or {}),
                about.format("monitor"): f"{HOST} {self.ports[0]} {sentinels // 2 + 1}",
                about.format("down-after-milliseconds"): str(down_after_ms),
                about.format("failover-timeout"): "3000",
            }
            password = (connection or {}).get("password")
            if password:
                sentinel[about.format("auth-pass")] = str(password)
            self._servers[port] = Server(
                directory / str(port), port, sentinel, connection=sentinel_connection, arguments=("--sentinel",)
            )

    def _form(self) -> None:
        self.start_all()
        wait_until(self._is_complete, CHANGE_S, lambda: f"the Sentinels do not know the replicas and each other: {self._known()}")

    @property
    def url(self) -> str:
        """For `REDIS_URL`: all Sentinels, without a user."""
        return "redis+sentinel://" + ",".join(f"{HOST}:{port}" for port in self.sentinel_ports) + f"/{self.service}"

    @property
    def primary(self) -> int:
        """The port of the primary that a majority of the running Sentinels names."""
        named = [self._named(port) for port in self.sentinel_ports if self._servers[port].is_running]
        return max(set(named), key=named.count)

    def wait_failover(self, old: int) -> int:
        """Wait until all running Sentinels name another primary than `old`, and it is one. Returns its port."""

        def has_happened() -> bool:
            named = {self._named(port) for port in self.sentinel_ports if self._servers[port].is_running}
            if len(named) != 1 or old in named:
                return False
            try:
                return self._servers[next(iter(named))].client.info("replication")["role"] == "master"
            except (RedisError, OSError):
                return False

        wait_until(has_happened, CHANGE_S, lambda: f"no replica has taken over: {self._known()}")
        return self.primary

    def _named(self, sentinel_port: int) -> int:
        address: Any = self._servers[sentinel_port].client.sentinel_get_master_addr_by_name(self.service)
        return int(address[1]) if address else 0

    def _known(self) -> list[tuple[int, int]]:
        """The replicas and the other Sentinels that each of them knows."""
        states: list[Any] = [self._servers[port].client.sentinel_master(self.service) for port in self.sentinel_ports]
        return [(int(state["num-slaves"]), int(state["num-other-sentinels"])) for state in states]

    def _is_complete(self) -> bool:
        expected = len(self.ports) - 1, len(self.sentinel_ports) - 1
        up = (self._servers[port].client.info("replication")["master_link_status"] == "up" for port in self.ports[1:])
        return all(known == expected for known in self._known()) and all(up)
