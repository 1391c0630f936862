"""The table of differences and the tests name the same differences."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from dss_dev.queue_world import World, differs, table_ids


def named_in(source: str) -> list[str]:
    """The ids that tests give to `differs`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        argument.value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "differs"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    ]


def test_each_row_of_the_table_has_a_test_and_each_difference_of_a_test_a_row():
    others = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    named = {one for path in others for one in named_in(path.read_text())}
    assert sorted(named) == sorted(table_ids())


class Bare(World):
    engine = "raft"

    async def pass_ms(self, duration_ms): ...
    async def restart(self): ...
    def unreachable(self, key): ...


class Node:
    """Nothing is called."""


def test_a_test_may_only_differ_if_it_names_a_difference():
    with pytest.raises(AssertionError, match="names a difference"):
        Bare(Node(), frozenset()).either(log=1, redis=2)


def test_a_test_that_names_a_difference_must_differ():
    @differs("index")
    async def test(): ...

    world = Bare(Node(), test.differences)
    with pytest.raises(AssertionError, match="index"):
        world.check_differences()
    assert world.either(log=1, redis=2) == 1
    world.check_differences()
