"""Plant a bug in the core, in memory, to test the checks: they must find every bug.

The modules of the core, and everything that uses them, are imported again with the patches of the mutant.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sim_mutant_list import Mutant

PACKAGE = "dss_raft.core"
#: modules above the core that may have planted bugs, too
REPLICATED = (
    "dss_raft.replication.replica",
    "dss_raft.replication.client_requests",
    "dss_raft.replication.sessions",
    "dss_raft.replication.batch",
    "dss_raft.replication.machine",
    "dss_raft.replication.commands",
    "dss_raft.replication.clocks",
    "dss_raft.replication.admission",
    "dss_raft.replication.proposals",
    "dss_raft.versions",
)
#: modules with directed tests
SCENARIOS = (
    "test_paper",
    "test_paper_log",
    "test_paper_members_snapshots_clients",
    "test_elections",
    "test_core",
    "test_formation",
    "test_reachable",
)
#: modules that must be imported again to use the mutated core
SIMULATOR = (
    "sim_world",
    "sim_load",
    "sim_drivers",
    "sim_heap",
    "sim_node",
    "sim_sessions",
    "sim_requests",
    "sim_versions",
    "sim_check",
    "sim_story",
)
REIMPORTED = (PACKAGE, *SIMULATOR, *REPLICATED, "raft_harness", *SCENARIOS)
CORE_TESTS = Path(__file__).parents[1] / "core"


class Patched(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules with patches: (full name of the module, text to find, replacement)."""

    def __init__(self, patches: Iterable[tuple[str, str, str]]) -> None:
        self.patches = tuple(patches)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname not in {module for module, _, _ in self.patches}:
            return None
        original = importlib.machinery.PathFinder.find_spec(fullname, path)
        return importlib.util.spec_from_loader(fullname, self, origin=original.origin if original else None)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        origin = module.__spec__.origin
        assert origin is not None
        source = Path(origin).read_text()
        for name, old, new in self.patches:
            if module.__name__ == name:
                if old not in source:
                    raise LookupError(f"nothing to mutate in {name}: {old!r}")
                source = source.replace(old, new)
        exec(compile(source, origin, "exec"), module.__dict__)


def full_name(module: str) -> str:
    """A module of the core by its short name, or one of REPLICATED."""
    names = (f"dss_raft.replication.{module}", f"dss_raft.{module}")
    return next((name for name in names if name in REPLICATED), f"{PACKAGE}.{module}")


@contextmanager
def planted(mutant: Mutant) -> Iterator[ModuleType]:
    """The simulator with this bug in the core. Afterwards the original modules are restored."""
    parent = sys.modules.get("dss_raft") or importlib.import_module("dss_raft")
    core = getattr(parent, "core", None)
    saved = {name: module for name, module in sys.modules.items() if _reimported(name)}
    for name in saved:
        del sys.modules[name]
    finder = Patched((full_name(module), old, new) for module, old, new in mutant.patches)
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module("sim_world")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _reimported(name)]:
            del sys.modules[name]
        sys.modules.update(saved)
        if core is not None:
            parent.core = core  # type: ignore[attr-defined]


def _reimported(name: str) -> bool:
    return any(name == root or name.startswith(root + ".") for root in REIMPORTED)


def scenario(name: str) -> Callable[[], None]:
    """A directed test of tests/raft/core, callable without pytest. It runs once per parameter, and raises when it fails."""
    if str(CORE_TESTS) not in sys.path:
        sys.path.insert(0, str(CORE_TESTS))
    harness = importlib.import_module("raft_harness")
    test = next(found for module in SCENARIOS if (found := getattr(importlib.import_module(module), name, None)))
    fixtures = {"cluster": lambda: harness.Cluster("abc"), "make_cluster": lambda: harness.Cluster, "lone": harness.Lone}
    wanted = [fixture for fixture in inspect.signature(test).parameters if fixture in fixtures]

    def run() -> None:
        for case in _cases(test):
            test(**{fixture: fixtures[fixture]() for fixture in wanted}, **case)

    return run


def _cases(test: Any) -> list[dict[str, Any]]:
    """The arguments from pytest.mark.parametrize."""
    cases: list[dict[str, Any]] = [{}]
    for mark in getattr(test, "pytestmark", ()):
        names = mark.args[0] if isinstance(mark.args[0], tuple) else (mark.args[0],)
        rows = [dict(zip(names, values if len(names) > 1 else (values,), strict=True)) for values in mark.args[1]]
        cases = [case | row for case in cases for row in rows]
    return cases
