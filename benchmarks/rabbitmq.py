"""Three RabbitMQ nodes on this machine, for benchmarks. Debian's package rabbitmq-server brings the programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from dss_dev.local_cluster import free_ports

#: Debian's rabbitmq-server in PATH changes to another user; this one does not.
PROGRAMS = Path("/usr/lib/rabbitmq/bin")
START_TIMEOUT_S = 90


def find() -> str | None:
    """The directory of RabbitMQ's programs, or None: it is not installed."""
    if shutil.which("epmd") is None:
        return None
    if (PROGRAMS / "rabbitmq-server").exists():
        return str(PROGRAMS)
    found = shutil.which("rabbitmq-server")
    return str(Path(found).resolve().parent) if found else None


class RabbitCluster:
    """A context: nodes that have formed a cluster, with their data below `directory`.

    Raises:
        RuntimeError: RabbitMQ is not installed, or a node did not start.
    """

    def __init__(self, directory: Path, nodes: int = 3) -> None:
        programs = find()
        if programs is None:
            raise RuntimeError("RabbitMQ is not installed (Debian: apt install rabbitmq-server)")
        self._programs = programs
        self._directory = directory
        self._names = [f"dss-bench-{number}@localhost" for number in range(1, nodes + 1)]
        ports = free_ports(2 * nodes + 1)
        self._epmd_port = ports.pop()
        self._ports, self._distribution_ports = ports[:nodes], ports[nodes:]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def urls(self) -> list[str]:
        return [f"amqp://guest:guest@127.0.0.1:{port}/" for port in self._ports]

    def _environment(self, index: int) -> dict[str, str]:
        directory = self._directory / f"rabbitmq-{index + 1}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "enabled_plugins").write_text("[].\n")
        (directory / "rabbitmq.conf").write_text(f"listeners.tcp.default = 127.0.0.1:{self._ports[index]}\n")
        return {
            **os.environ,
            "HOME": str(self._directory),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": self._names[index],
            "RABBITMQ_DIST_PORT": str(self._distribution_ports[index]),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
        }

    def _control(self, index: int, *arguments: str) -> None:
        command = [f"{self._programs}/rabbitmqctl", "--quiet", "--node", self._names[index], *arguments]
        done = subprocess.run(command, env=self._environment(index), capture_output=True, text=True, timeout=START_TIMEOUT_S)
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {(done.stderr or done.stdout).strip()[-500:]}")

    def __enter__(self) -> RabbitCluster:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        # Erlang's port mapper. One that the nodes start by themselves would outlive them.
        self._processes.append(
            subprocess.Popen(["epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)], start_new_session=True)
        )
        for index in range(len(self._names)):
            environment = self._environment(index)
            with open(self._directory / f"rabbitmq-{index + 1}" / "output", "wb") as output:
                self._processes.append(
                    subprocess.Popen(
                        [f"{self._programs}/rabbitmq-server"],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
            self._control(index, "wait", environment["RABBITMQ_PID_FILE"], "--timeout", str(START_TIMEOUT_S))
            if index:
                for step in (["stop_app"], ["join_cluster", self._names[0]], ["start_app"]):
                    self._control(index, *step)

    def stop(self) -> None:
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes = []

    def __exit__(self, *error: object) -> None:
        self.stop()
