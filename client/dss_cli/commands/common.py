"""What all commands have in common: their options, their output, and the cluster that they talk to."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dss_cli.terminal import Terminal

if TYPE_CHECKING:
    from dss_cli.cluster import Cluster

    FloatType = click.ParamType[float]
else:
    # It is generic from click 8.5 on.
    FloatType = click.ParamType

WIDTH = 100
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH, "show_default": True}
COMMON = "Common options"


@dataclass
class Common:
    """The values of the common options."""

    url: tuple[str, ...] = ()
    token: str | None = None
    timeout: float = 15.0
    http: bool = False
    json: bool = False
    quiet: bool = False

    def say(self, line: str) -> None:
        """A line on standard error."""
        if not self.quiet:
            self.complain(line)

    def complain(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def terminal(self) -> Terminal:
        console = None
        if sys.stdout.isatty() and not self.json:
            from rich.console import Console

            console = Console(highlight=False, markup=False, emoji=False)
        return Terminal(functools.partial(print, flush=True), self.say, self.json, console)

    def cluster(self) -> Cluster:
        """The cluster to talk to; its address is said.

        Raises:
            CannotChoose, WrongUse, OSError
        """
        from dss_cli.cluster import Cluster
        from dss_cli.find_cluster import cluster_urls, tls_of, token_of

        urls = cluster_urls(self.url, self.say)
        token = token_of() if self.token is None else self.token
        return Cluster(urls, token, self.say, self.timeout, "http" if self.http else "websocket", tls_of(urls))


def common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--url"],
            multiple=True,
            metavar="URL",
            help="Address of a node; repeat it, or separate several with commas. Default: DSS_URLS; else the node whose settings "
            "are in the environment; else the cluster of `make run` in this directory; else http://127.0.0.1:8201.",
        ),
        click.Option(
            ["--token"],
            metavar="TOKEN",
            help="Token for the cluster. Default: DSS_TOKEN, DSS_API_TOKEN, or the file that one of them with _FILE names; on a "
            "node's machine, with its settings, none is needed. Other users of this machine can see arguments, so prefer the "
            "environment.",
        ),
        click.Option(
            ["--timeout"],
            type=Seconds(zero=False),
            default=15,
            metavar="SECONDS",
            help="How long to look for a node that carries out a call.",
        ),
        click.Option(["--http"], is_flag=True, help="Call over HTTP, where WebSockets do not pass."),
        click.Option(
            ["--json"], is_flag=True, help="Print JSON: one document on one line, or a line each for what a command lists."
        ),
        click.Option(
            ["--quiet", "-q"], is_flag=True, help="Do not say on standard error which cluster is used, and what it waits for."
        ),
    ]


def _take(context: click.Context) -> None:
    """Move the common options that were given here to the object that all commands share."""
    common = context.ensure_object(Common)
    for option in common_options():
        name = str(option.name)
        value = context.params.pop(name)
        if context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None):
            setattr(common, name, value)


class Seconds(FloatType):
    """A duration.

    Args:
        at_most: the longest.
        zero: whether it may be 0.
    """

    name = "seconds"

    def __init__(self, at_most: float = float("inf"), zero: bool = True) -> None:
        self._at_most = at_most
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        # "nan" is neither more nor less than anything.
        if not 0 <= seconds <= self._at_most or (seconds == 0 and not self._zero):
            least = "at least 0" if self._zero else "more than 0"
            most = f" and at most {self._at_most:g}" if self._at_most < float("inf") else ""
            self.fail(f"{value} is not {least}{most} seconds.", param, ctx)
        return seconds


def _format_options(command: click.Command, context: click.Context, formatter: click.HelpFormatter) -> None:
    """The command's own options. Only `dss --help` explains the common ones."""
    names = {option.name for option in common_options()}
    own: list[tuple[str, str]] = []
    common: list[tuple[str, str]] = []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)) is not None:
            (common if parameter.name in names else own).append(record)
    with formatter.section("Options"):
        formatter.write_dl(own)
    with formatter.section(COMMON):
        if context.parent is None:
            formatter.write_dl(common)
        else:
            listed = ", ".join(option.opts[0] for option in common_options())
            formatter.write_text(f"{listed}. See {context.find_root().command_path} --help.")


class DssCommand(click.Command):
    """A command with the common options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["context_settings"] = {**CONTEXT, **kwargs.get("context_settings", {})}
        super().__init__(*args, **kwargs)
        self.params.extend(common_options())

    def invoke(self, ctx: click.Context) -> Any:
        _take(ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _format_options(self, ctx, formatter)


class DssGroup(click.Group):
    """A group of commands."""

    command_class = DssCommand

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, context_settings=CONTEXT, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are defined."""
        return list(self.commands)


class DssRoot(DssGroup):
    """`dss` itself: the common options may come before the command, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(common_options())

    def invoke(self, ctx: click.Context) -> Any:
        _take(ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


Work = Callable[..., Coroutine[Any, Any, int | None]]


def in_cluster(work: Work) -> Callable[..., None]:
    """Make a command of a coroutine function of the cluster, the terminal, and the command's arguments. It may return an exit status."""

    @click.pass_context
    @functools.wraps(work)
    def command(context: click.Context, /, **arguments: Any) -> None:
        common = context.ensure_object(Common)
        terminal = common.terminal()
        cluster = common.cluster()

        async def run() -> int | None:
            async with cluster:
                return await work(cluster, terminal, **arguments)

        if status := asyncio.run(run()):
            context.exit(status)

    return command


def confirm(yes: bool, question: str) -> None:
    """Ask before something is deleted. Without a terminal, `--yes` is needed.

    Raises:
        click.UsageError, click.Abort
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Confirm with --yes.")
    click.confirm(question, abort=True, err=True)


yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
#: to be given after --
command_argument = click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND…")
