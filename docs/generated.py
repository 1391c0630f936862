"""The parts of the reference that are generated from the code while the documentation is built, so that no copy can be outdated."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator

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


_PARTS = {"settings": settings, "commands": commands}
