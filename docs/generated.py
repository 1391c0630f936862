"""The parts of the reference that are generated from the code while the documentation is built, so that no copy can be outdated."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

MARKER = re.compile(r"<!-- generated: (\w+) -->")
#: Options that Django gives to every command.
_DJANGO_OPTIONS = frozenset(
    ("help", "version", "verbosity", "settings", "pythonpath", "traceback", "no_color", "force_color", "skip_checks")
)


def fill_in(text: str) -> str:
    """`text` with each marker replaced by what it names."""
    return MARKER.sub(lambda match: _PARTS[match[1]](), text)


def settings() -> str:
    """The table of settings."""
    from dss_project.config import settings_table

    rows = [f"| `{row.variable}` | {row.default} | {row.meaning} |" for row in settings_table()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def commands() -> str:
    """Every command of `manage.py` that is ours, with its options."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dss_project.settings")
    import django
    from django.core.management import get_commands, load_command_class

    django.setup()
    found = sorted(name for name, app in get_commands().items() if str(app).startswith("dss_"))
    sections = []
    for name in found:
        parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)
        sections.append("\n".join([f"## {name}", "", *_described(parser)]))
    return "\n\n".join(sections)


def _described(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"{parser.description}\n"
    actions = [action for action in parser._actions if action.dest not in _DJANGO_OPTIONS]
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, sub in action.choices.items():
                arguments = [one for one in sub._actions if one.dest not in _DJANGO_OPTIONS]
                yield f"- `{' '.join([name, *map(_shown, arguments)])}`: {_sentence(helps.get(name))}"
                yield from (f"  - `{_shown(one)}`: {_sentence(one.help)}" for one in arguments if one.help)
        else:
            default = f"Default: `{action.default}`." if action.option_strings and action.default and action.nargs != 0 else ""
            required = "Required." if action.required and action.option_strings else ""
            details = " ".join(filter(None, (_sentence(action.help), required, default)))
            yield f"- `{_shown(action)}`: {details}" if details else f"- `{_shown(action)}`"


def _shown(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if not action.option_strings:
        return str(action.metavar or action.dest)
    return action.option_strings[-1] if action.nargs == 0 else f"{action.option_strings[-1]} {metavar}"


def _sentence(text: str | None) -> str:
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "`", "…")) else ".")


def dss() -> str:
    """Every command of `dss`, with its help text and options."""
    import click

    from dss_cli.commands import dss as root

    lines = ["## Common options", "", *_options(root, click.Context(root, info_name="dss", **root.context_settings))]
    for name, command in _leaves(root):
        context = click.Context(command, info_name=f"dss {name}", **command.context_settings)
        usage = " ".join(["dss", name, *command.collect_usage_pieces(context)])
        lines += ["", f"## dss {name}", "", f"```text\n{usage}\n```", "", *_paragraphs(command.help or "")]
        lines += _options(command, context)
    return "\n".join(lines)


def _leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    import click

    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def _paragraphs(text: str) -> Iterator[str]:
    """A help text. What click prints as it is becomes a block."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        literal = paragraph.removeprefix("\b\n")
        if literal == paragraph:
            yield _with_code(paragraph) + "\n"
        else:
            title, _, rest = literal.partition("\n")
            yield f"{title}\n\n```text\n{inspect.cleandoc(rest)}\n```\n"


def _with_code(text: str) -> str:
    """Options and variables as code."""
    return re.sub(r"(?<![\w`-])(--[a-z-]+|DSS_[A-Z_]+)", r"`\1`", text)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    import click

    from dss_cli.commands.common import common_options

    common = {option.name for option in common_options()}
    for option in command.get_params(context):
        if not isinstance(option, click.Option) or "--help" in option.opts or (command.name != "dss" and option.name in common):
            continue
        record = option.get_help_record(context)
        if record is not None:
            yield f"- `{record[0]}`: {_with_code(record[1])}"


_PARTS = {"settings": settings, "commands": commands, "dss": dss}
