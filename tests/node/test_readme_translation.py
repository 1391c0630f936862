"""The Indonesian README shows the same commands, outputs and calls as the English one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text()
INDONESIAN = (ROOT / "README.id.md").read_text()


def blocks(text: str) -> list[str]:
    """Fenced blocks, without the comments behind commands."""
    found = re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r" +# .*", "", block) for block in found]


def test_commands_and_outputs() -> None:
    assert len(blocks(INDONESIAN)) >= 6
    assert blocks(INDONESIAN) == blocks(ENGLISH)


@pytest.mark.parametrize("pattern", [r"^\|.*`/.*`.*\|$", r"`(docker compose [^`]+)`", r"`(\.venv/bin/[^`]+)`"])
def test_calls_and_commands_in_the_text(pattern: str) -> None:
    calls = re.findall(pattern, INDONESIAN, flags=re.MULTILINE)
    assert calls
    assert calls == re.findall(pattern, ENGLISH, flags=re.MULTILINE)


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", INDONESIAN)
    assert len(targets) >= 5
    assert not [target for target in targets if not (ROOT / target).exists()]
