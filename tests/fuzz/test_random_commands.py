"""The fuzzer of commands at a small size, and what it finds. `make fuzz` runs 1,000,000 commands."""

from __future__ import annotations

from typing import Any

import pytest
from command_world import CommandWorld, Diverged

from dss_api.request_id import RequestId
from dss_cache.core.directory import Directory
from dss_locks.core.table import LockTable
from dss_raft.replication.commands import Command

COMMANDS = 1200


def run_some(commands: int = COMMANDS) -> None:
    for seed in range(4):
        CommandWorld(seed).run(commands)


@pytest.mark.parametrize("seed", range(4))
def test_two_replicas_stay_equal(seed: int) -> None:
    CommandWorld(seed).run(COMMANDS)


def test_the_same_seed_is_the_same_run() -> None:
    worlds = [CommandWorld(7), CommandWorld(7)]
    for world in worlds:
        world.run(300)
    assert worlds[0].first.snapshot() == worlds[1].first.snapshot()
    assert worlds[0].count == worlds[1].count


def test_every_command_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: set[type[Command]] = set()
    world = CommandWorld(0)
    admit = world._admit

    def noted(command: Command, once: RequestId | None = None) -> bytes | None:
        encoded = admit(command, once)
        if encoded is not None:
            tried.add(type(command))
        return encoded

    monkeypatch.setattr(world, "_admit", noted)
    world.weights = [1] * len(world.weights)
    world.run(3000)
    assert tried >= set(world.first.command_types)


def test_a_machine_that_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    delete = Directory._delete

    def planted(directory: Directory, command: Any, *args: Any) -> Any:
        if command.key in directory.records:
            raise KeyError("planted")
        return delete(directory, command, *args)

    monkeypatch.setattr(Directory, "_delete", planted)
    with pytest.raises(Diverged, match="planted"):
        run_some()


def test_a_restore_that_loses_something_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    restore = LockTable.restore

    def planted(table: LockTable, state: Any) -> None:
        restore(table, state)
        table.forced_releases.clear()

    monkeypatch.setattr(LockTable, "restore", planted)
    with pytest.raises(Diverged):
        run_some(4 * COMMANDS)
