"""The documentation is correct: links have targets, named code exists, and the reference agrees with the code."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest
from prometheus_client import REGISTRY

import dss_project.asgi
import dss_project.server.life  # noqa: F401  (both register the metrics of every package)
from dss_api.operation import Operation, Subscription
from dss_api.problems import PROBLEMS
from dss_locks.core.state import LockLimits
from dss_project.config import NodeConfig
from dss_project.registry import operations, subscriptions
from dss_project.runtime import state_machines
from dss_raft.replication.replica import Replica

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_NOT_OURS = re.compile(r"(^|/)(\.(?!github)|_build|build|dist|report|node_modules)[^/]*/")
PAGES = sorted(file for file in ROOT.rglob("*.md") if not _NOT_OURS.search(str(file.relative_to(ROOT))))
PAGE_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_FENCE = re.compile(r"^( *)(`{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")
#: [`name`](file.py)
_NAMED_CODE = re.compile(r"\[`([^`]+)`\]\(([^)]+\.py)\)")


def read(page: str) -> str:
    return (ROOT / page).read_text()


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text())


@cache
def anchors(page: Path) -> set[str]:
    """The headings of a page as a forge and MyST name them."""
    headings = re.findall(r"^#{1,6} +(.+?) *$", prose(page), flags=re.MULTILINE)
    texts = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_every_relative_link_leads_to_a_file_and_a_heading(name: str) -> None:
    page = ROOT / name
    wrong = []
    for target, anchor in _LINK.findall(prose(page)):
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            wrong.append(f"{target}#{anchor}")
    assert not wrong


# ------------------------------------------------------------------ architecture


@cache
def defined_in(file: Path) -> set[str]:
    """Names of a Python file: functions, classes, methods (`Class.method`), and what the module assigns."""
    return {file.name, *_defined(ast.parse(file.read_text()).body, "")}


def _defined(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name
            yield from _defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
        elif isinstance(node, ast.Assign):
            yield from (prefix + target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield prefix + node.target.id


@pytest.mark.parametrize("name", [name for name in PAGE_NAMES if name.startswith("docs/")])
def test_code_that_a_page_links_to_is_defined_in_that_file(name: str) -> None:
    page = ROOT / name
    named = _NAMED_CODE.findall(page.read_text())
    wrong = [f"{what} in {file}" for what, file in named if what not in defined_in((page.parent / file).resolve())]
    assert not wrong
    assert named or name != "docs/architecture.md"


@pytest.mark.parametrize("name", [name for name in PAGE_NAMES if name.startswith("docs/")])
def test_python_files_that_a_page_names_exist(name: str) -> None:
    paths = set(re.findall(r"`((?:\w+/)+\w+\.py)`", read(name))) - {"queue/__init__.py"}  # which decision 19 forbids
    folders = (ROOT, *(ROOT / name for name in ("raft", "locks", "queue", "cache", "client")))
    assert not [path for path in paths if not any((folder / path).exists() for folder in folders)]


# --------------------------------------------------------------------- decisions


def test_decisions_are_numbered_and_have_the_same_parts() -> None:
    pages = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    index = read("docs/decisions/index.md")
    assert len(pages) >= 20
    assert len({page.name[:4] for page in pages}) == len(pages), "a number is used once"
    for page in pages:
        text = page.read_text()
        number = int(page.name[:4])
        assert text.startswith(f"# {number}. "), page.name
        assert re.search(r"^(Proposed|Accepted|Superseded)\b.*\d{4}-\d\d-\d\d", text, flags=re.MULTILINE), page.name
        assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE)[:3] == ["Context", "Decision", "Consequences"], page.name
        assert page.name in index, page.name


# --------------------------------------------------------------------------- api

_API = read("docs/reference/api.md")


def section(heading: str) -> str:
    """The text below a heading of the API page."""
    match = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", _API, flags=re.MULTILINE | re.DOTALL)
    assert match, f"docs/reference/api.md has no section {heading}"
    return match[1]


def not_named(struct: type[msgspec.Struct], text: str) -> list[str]:
    """Fields that the text does not name, beyond those of every answer."""
    names = {field.encode_name for field in msgspec.structs.fields(struct)} - {"ok", "index"}
    return sorted(name for name in names if f"`{name}" not in text)


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.name)
def test_the_api_page_describes_every_operation(operation: Operation) -> None:
    text = section(f"{operation.method} {operation.path}")
    assert text.lstrip().startswith(f"`{operation.name}`.")
    assert not_named(operation.request, text) == []
    if "Answer: the settings." not in text:
        assert not_named(operation.answer, text) == []
    assert [code for code in operation.problems if f"`{code}`" not in text] == []


@pytest.mark.parametrize("subscription", subscriptions(), ids=lambda subscription: subscription.name)
def test_the_api_page_describes_every_subscription(subscription: Subscription) -> None:
    text = section(subscription.name)
    assert not_named(subscription.request, text) == []
    assert not_named(subscription.event, text) == []
    assert [code for code in subscription.problems if f"`{code}`" not in text] == []


def test_the_api_page_describes_nothing_else() -> None:
    described = set(re.findall(r"^### (.+)$", _API, flags=re.MULTILINE))
    offered = {f"{operation.method} {operation.path}" for operation in operations()}
    assert described == {*offered, *(subscription.name for subscription in subscriptions()), "GET /metrics"}


def test_the_api_page_lists_every_problem_with_its_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.+) \|$", _API, flags=re.MULTILINE)
    assert {code: int(status) for code, status, _ in rows} == {code: problem.status for code, problem in PROBLEMS.items()}
    retry = {code for code, _, meaning in rows if "Has `Retry-After`." in meaning}
    assert retry == {code for code, problem in PROBLEMS.items() if problem.retry_after_s is not None}


# ------------------------------------------------------------------------ access


def test_the_access_page_has_the_right_that_each_call_needs() -> None:
    rows = re.findall(r"^\| `(\S+)` \| (.+?) \| (.+) \|$", read("docs/reference/access.md"), flags=re.MULTILINE)
    expected = [(one.name, f"`{one.method} {one.path}`", one.needs.text) for one in operations()]
    expected += [(one.name, "WebSocket", one.needs.text) for one in subscriptions()]
    assert rows == expected, "docs/reference/access.md must be:\n" + "\n".join(f"| `{a}` | {b} | {c} |" for a, b, c in expected)


# ----------------------------------------------------------------------- metrics

#: counted by libraries, and described by them
_OF_LIBRARIES = ("django_", "process_", "python_")


def metrics_in_code() -> dict[str, tuple[str, frozenset[str]]]:
    """Name -> type and labels, as `/metrics` shows them."""
    found = {}
    for collector in REGISTRY._collector_to_names:
        for family in getattr(collector, "describe", collector.collect)():
            if not family.name.startswith(_OF_LIBRARIES):
                labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
                name = f"{family.name}_total" if family.type == "counter" else family.name
                found[name] = family.type, frozenset(labels)
    return found


def test_the_metrics_page_lists_every_metric_with_its_labels() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", read("docs/reference/metrics.md"), flags=re.MULTILINE)
    described = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert described == metrics_in_code()


# ------------------------------------------------------------------------ limits

_UNITS = {
    "bytes": 1,
    "characters": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "ms": 0.001,
    "s": 1,
    "h": 3600,
    "days": 24 * 3600,
}
#: [`NAME`](../../package/file.py), or `NAME`
_LIMIT_NAME = re.compile(r"\[?`([\w.]+)`(?:\]\(\.\./\.\./(?:\w+/)?(dss_\w+/[\w/]+)\.py\))?")


def described_limits() -> list[tuple[str, str, str]]:
    """Name, file and value in each row of the page's tables."""
    rows = re.findall(r"^\| (?!limit |-)(.+) \|$", read("docs/reference/limits.md"), flags=re.MULTILINE)
    cells = [row.split(" | ") for row in rows]
    assert [row for row in cells if len(row) != 4] == []
    names = [_LIMIT_NAME.fullmatch(name) for _, name, _, _ in cells]
    assert None not in names
    return [(name[1], name[2] or "", value) for name, (_, _, value, _) in zip(names, cells, strict=True) if name]


def limit_in_code(name: str, file: str) -> object:
    if file:
        found = getattr(importlib.import_module(file.replace("/", ".")), name.partition(".")[0])
        return inspect.signature(found).parameters[name.partition(".")[2]].default if "." in name else found
    settings = {field.metadata["variable"]: field.default for field in dataclasses.fields(NodeConfig)}
    return settings[name] if name in settings else state_limits()[name]


def state_limits() -> dict[str, int]:
    return Replica("node-1", state_machines()).limits.maxima


def test_the_limits_page_has_the_values_of_the_code() -> None:
    wrong = []
    rows = described_limits()
    assert len(rows) >= 60
    for name, file, value in rows:
        number, _, unit = value.partition(" ")
        described = int(number.replace(",", "")) * _UNITS[unit or "bytes"] * (1000 if "_ms" in name.lower() else 1)
        if described != limit_in_code(name, file):
            wrong.append(f"{name}: {value}")
    assert wrong == []


def test_the_limits_page_lists_all_limits_of_the_replicated_state() -> None:
    # A new limit needs a row in docs/reference/limits.md.
    described = {name for name, _, _ in described_limits()}
    assert state_limits().keys() - described == set()
    assert {f"LockLimits.{field}" for field in LockLimits.__struct_fields__} - described == set()


# ---------------------------------------------------------------- generated parts


def test_settings_and_commands_are_generated_from_the_code() -> None:
    code = "import sys; sys.path.insert(0, 'docs'); import generated; print(generated.settings(), generated.commands(), generated.dss())"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for setting in ("`NODE_ID`", "`RAFT_HEARTBEAT_MS`", "`DSS_API_TOKEN`"):
        assert setting in run.stdout
    for command in ("node", "status", "member", "publish", "consume", "mesi"):
        assert f"## {command}\n" in run.stdout
    assert "`--until-empty`" in run.stdout
    for command in ("status", "lock run", "queue consume", "cache trace", "leader transfer"):
        assert f"## dss {command}\n\n```text\ndss {command} [OPTIONS]" in run.stdout
    assert "- `--kill-after SECONDS`: " in run.stdout
    for page in ("settings", "commands", "dss"):
        assert f"<!-- generated: {page} -->" in read(f"docs/reference/{page}.md")


def test_every_command_line_of_dss_in_the_pages_is_accepted() -> None:
    from click import Group, MissingParameter, UsageError
    from click.exceptions import NoArgsIsHelpError

    from dss_cli.commands import dss

    def check(words: list[str]) -> None:
        """Parse the arguments, without carrying the command out.

        Raises:
            UsageError: the command does not take them.
        """
        command, parent, name = dss, None, "dss"
        while isinstance(command, Group):
            parent = command.make_context(name, words, parent)
            name, found, words = command.resolve_command(parent, [*parent._protected_args, *parent.args])
            assert found is not None
            command = found
        command.make_context(name, words, parent)

    found, wrong = [], []
    for page in sorted({*ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("README*.md"), ROOT / "CHANGELOG.md"}):
        text = page.read_text().replace("\\\n", " ")
        lines = "\n".join(re.findall(r"^ *```(?:sh|console)\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)).splitlines()
        in_text = re.findall(r"`(dss [a-z][^`]*)`", text)
        for line in (*lines, *in_text):
            match = re.search(r"(?:^ *(?:\$ )?|/|\* |exec node-1 )dss ((?:-q |--json )*[a-z][a-z]+ ?.*)", line)
            if match is None or "COMMAND" in line:
                continue
            words = shlex.split(re.split(r" \| | > |\)$", match[1])[0], comments=True)
            found.append(line)
            try:
                check(words)
            except UsageError as error:
                if isinstance(error, MissingParameter | NoArgsIsHelpError) and line in in_text:
                    continue  # the name of a command
                wrong.append(f"{page.relative_to(ROOT)}: {line}: {error.format_message()}")
    assert len(found) > 40
    assert wrong == []


# ---------------------------------------------------------------------- glossary


def test_the_glossary_is_sorted_and_every_term_has_a_source() -> None:
    entries = re.findall(r"^(\S.*)\n: ((?:.+\n?)+)", read("docs/reference/glossary.md"), flags=re.MULTILINE)
    terms = [term for term, _ in entries]
    assert len(terms) >= 50
    assert terms == sorted(terms, key=str.casefold)
    assert [term for term, meaning in entries if "Source:" not in meaning] == []
