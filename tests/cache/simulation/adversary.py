"""Who drives the simulation into trouble."""

from __future__ import annotations

import random

from simulated_cluster import Simulation
from simulated_parts import KEYS


class Adversary:
    """Throws dice: some of the nodes can talk, work goes on among them in an order of its own, and small things happen anywhere.

    Args:
        seed: the same dice again.
    """

    def __init__(self, simulation: Simulation, seed: int) -> None:
        self.simulation = simulation
        self.dice = random.Random(seed)
        self.names = list(simulation.nodes)
        self.connected = list(self.names)
        #: likings differ from seed to seed, which finds more (swarm testing)
        self._anywhere = self._likings(
            put=3, delete=0.5, get=8, poke=4, fill=4, land=4, commit=6, apply=6, deliver=8, drop=1, renew=2, confirm=3, tick=3,
            pause=1, resume=2, restart=0.3, restore=0.5, lead=0.3, learn_leader=0.5, write_back=2, lose=0.1,
        )  # fmt: skip
        self._thoroughness = self.dice.choice((0.6, 0.8, 0.95))
        self._longest_wait_s = self.dice.choice((0.1, 0.3, 0.6, 1.2))

    def _likings(self, **weights: float) -> dict[str, float]:
        return {action: weight * self.dice.choice((0.2, 1, 1, 3)) for action, weight in weights.items()}

    def run(self, steps: int) -> None:
        dice, simulation = self.dice, self.simulation
        for number in range(steps):
            if number % 15 == 0:
                cut_off = dice.choice([None, *self.names])
                self.connected = [name for name in self.names if name != cut_off]
            if simulation.leader not in self.connected and dice.random() < 0.15:
                simulation.lead(dice.choice(self.connected), dice.choice((0, 1, 5)))
            kind = dice.choices(("work", "get", "put", "advance", "anything"), (5, 6, 2, 3, 6))[0]
            if kind == "work":
                self._work()
            elif kind == "get":
                simulation.get(dice.choice(self.names), dice.choice(KEYS))
            elif kind == "put":
                simulation.put(dice.choice(self.connected), dice.choice(KEYS), dice.choice((0, 0, 0, 700)))
            elif kind == "advance":
                simulation.advance(dice.random() * self._longest_wait_s)
            else:
                self._anything()

    def _work(self) -> None:
        """Among the connected nodes everything goes its way, more or less."""
        order = self.dice.sample(self.connected, len(self.connected))
        self.simulation.work(order, lambda: self.dice.random() < self._thoroughness)

    def _anything(self) -> None:
        """One small step, at any node."""
        dice, simulation = self.dice, self.simulation
        action = dice.choices(list(self._anywhere), list(self._anywhere.values()))[0]
        node, key = dice.choice(self.names), dice.choice(KEYS)
        if action in ("put", "delete", "get", "write_back"):
            getattr(simulation, action)(node, key)
        elif action == "lose":
            simulation.lose(key)
        elif action in ("deliver", "drop"):
            getattr(simulation, action)(dice.randrange(1000))
        elif action == "commit":
            simulation.commit(dice.choice((1, 2, 8)))
        elif action == "apply":
            simulation.apply(node, dice.choice((1, 3, 20)))
        elif action == "restart":
            simulation.restart(node, dice.choice(("", *self.names)))
        elif action == "restore":
            simulation.restore(node, dice.choice(self.names))
        elif action == "lead":
            simulation.lead(node, dice.choice((0, 1, 5)))
        else:
            getattr(simulation, action)(node)
