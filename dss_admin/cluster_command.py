"""The base of management commands that talk to a running cluster. They call the functions of `dss_cli`, as `dss` does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from dss_cli.backup import BackupInvalid
from dss_cli.cluster import TIMEOUT_S, Cluster, CommandFailed
from dss_cli.find_cluster import CLUSTERS, URL_HELP, CannotChoose, cluster_urls, tls_of, token_of, without_repeats
from dss_cli.terminal import Terminal
from dss_client import DssError, Unavailable

#: what a command does with the cluster
Work = Callable[[Cluster, Terminal], Awaitable[Any]]


class ClusterCommand(BaseCommand):
    """A command with `--url`. Its `handle` calls `carry_out`."""

    requires_system_checks: list[str] = []
    #: what to say when no node answers
    hint = ""
    timeout_s = TIMEOUT_S
    #: prints JSON
    is_json = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", action="append", default=[], help=URL_HELP)

    def terminal(self) -> Terminal:
        return Terminal(self.stdout.write, partial(self.stderr.write, style_func=str), self.is_json)

    def carry_out(self, urls: list[str], work: Work, clusters: Path = CLUSTERS, token: str = "") -> Any:
        """Find the cluster, and do the work.

        Args:
            urls: the values of `--url`.
            clusters: where `make run` keeps its clusters.
            token: instead of the one that the settings give.

        Raises:
            CommandError: it cannot be done; the text says why.
        """
        terminal = self.terminal()
        say = without_repeats(terminal.say)
        try:
            found = cluster_urls(urls, say, clusters)
            cluster = Cluster(found, token or token_of(clusters), say, self.timeout_s, tls=tls_of(found, clusters))
            return asyncio.run(_within(cluster, terminal, work))
        except Unavailable as error:
            raise CommandError(f"{error}{self.hint}") from None
        except (DssError, CannotChoose, CommandFailed, BackupInvalid) as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None


async def _within(cluster: Cluster, terminal: Terminal, work: Work) -> Any:
    async with cluster:
        return await work(cluster, terminal)
