"""The adversary that drives the simulation at random."""

from __future__ import annotations

import random

from simulated_cluster import Simulation
from simulated_parts import KEYS


class Adversary:
    """Random steps: some of the nodes are connected and work, in random order; single steps happen on any node.

    Args:
        seed: seed of the random numbers.
    """

    def __init__(self, simulation: Simulation, seed: int) -> None:
        self.simulation = simulation
        self.rng = random.Random(seed)
        self.names = list(simulation.nodes)
        self.connected = list(self.names)
        #: the weights differ from seed to seed, which finds more (swarm testing)
        self._anywhere = self._weights(
            put=3, delete=0.5, get=8, poke=4, fill=4, finish=4, commit=6, apply=6, deliver=8, drop=1, renew=2, confirm=3, tick=3,
            pause=1, resume=2, restart=0.3, restore=0.5, lead=0.3, learn_leader=0.5, write_back=2, lose=0.1,
        )  # fmt: skip
        self._thoroughness = self.rng.choice((0.6, 0.8, 0.95))
        self._longest_wait_s = self.rng.choice((0.1, 0.3, 0.6, 1.2))

    def _weights(self, **weights: float) -> dict[str, float]:
        return {action: weight * self.rng.choice((0.2, 1, 1, 3)) for action, weight in weights.items()}

    def run(self, steps: int) -> None:
        rng, simulation = self.rng, self.simulation
        for number in range(steps):
            if number % 15 == 0:
                cut_off = rng.choice([None, *self.names])
                self.connected = [name for name in self.names if name != cut_off]
            if simulation.leader not in self.connected and rng.random() < 0.15:
                simulation.lead(rng.choice(self.connected), rng.choice((0, 1, 5)))
            kind = rng.choices(("work", "get", "put", "advance", "anything"), (5, 6, 2, 3, 6))[0]
            if kind == "work":
                self._work()
            elif kind == "get":
                simulation.get(rng.choice(self.names), rng.choice(KEYS))
            elif kind == "put":
                simulation.put(rng.choice(self.connected), rng.choice(KEYS), rng.choice((0, 0, 0, 700)))
            elif kind == "advance":
                simulation.advance(rng.random() * self._longest_wait_s)
            else:
                self._anything()

    def _work(self) -> None:
        """The connected nodes make most of the steps they can."""
        order = self.rng.sample(self.connected, len(self.connected))
        self.simulation.work(order, lambda: self.rng.random() < self._thoroughness)

    def _anything(self) -> None:
        """One step on any node."""
        rng, simulation = self.rng, self.simulation
        action = rng.choices(list(self._anywhere), list(self._anywhere.values()))[0]
        node, key = rng.choice(self.names), rng.choice(KEYS)
        if action in ("put", "delete", "get", "write_back"):
            getattr(simulation, action)(node, key)
        elif action == "lose":
            simulation.lose(key)
        elif action in ("deliver", "drop"):
            getattr(simulation, action)(rng.randrange(1000))
        elif action == "commit":
            simulation.commit(rng.choice((1, 2, 8)))
        elif action == "apply":
            simulation.apply(node, rng.choice((1, 3, 20)))
        elif action == "restart":
            simulation.restart(node, rng.choice(("", *self.names)))
        elif action == "restore":
            simulation.restore(node, rng.choice(self.names))
        elif action == "lead":
            simulation.lead(node, rng.choice((0, 1, 5)))
        else:
            getattr(simulation, action)(node)


class ClientAdversary(Adversary):
    """The same with near clients: most of them work, and read often. They are paused, cut off, restarted and forked."""

    def __init__(self, simulation: Simulation, seed: int) -> None:
        super().__init__(simulation, seed)
        self._of_clients = self._weights(
            client_get=6, client_renew=3, client_receive=4, serve_client=4, client_connect=0.5, client_disconnect=0.2, client_restart=0.2,
            client_fork=0.3, client_pause=0.5, client_resume=1, send_drops=3, serve_clients=2, try_to_open=1,
        )  # fmt: skip
        self._awake_clients = list(simulation.clients)
        # Clients hold leases only for a short time: what ends them must be frequent.
        for action in ("restart", "restore", "lead"):
            self._anywhere[action] *= 4

    def run(self, steps: int) -> None:
        for number in range(steps):
            if number % 12 == 0:
                slow = self.rng.choice([None, *self.simulation.clients])
                self._awake_clients = [name for name in self.simulation.clients if name != slow]
            if self.rng.random() < 0.5:
                self._let_clients_work()
            else:
                self._one_step_of_a_client()
            super().run(1)

    def _let_clients_work(self) -> None:
        """Most messages between connected nodes and clients arrive, in order."""
        rng, simulation = self.rng, self.simulation
        for node in self.connected:
            if rng.random() < self._thoroughness:
                simulation.try_to_open(node)
                simulation.send_drops(node)
                simulation.serve_clients(node)
        for name in self._awake_clients:
            client = simulation.clients[name]
            for key in KEYS:
                simulation.client_get(name, key)
            if client.connection is None:
                if rng.random() < 0.2:
                    simulation.client_connect(name, rng.choice(self.connected))
                continue
            simulation.client_renew(name)
            for _ in range(rng.choice((1, 4, 12))):
                if client.connection is None:
                    break
                if client.connection.node.node_id in self.connected:
                    simulation.serve_client(name)
                simulation.client_receive(name)

    def _one_step_of_a_client(self) -> None:
        rng, simulation = self.rng, self.simulation
        action = rng.choices(list(self._of_clients), list(self._of_clients.values()))[0]
        name, node = rng.choice(list(simulation.clients)), rng.choice(self.names)
        if action == "client_get":
            simulation.client_get(name, rng.choice(KEYS))
        elif action == "client_connect":
            simulation.client_connect(name, node)
        elif action in ("send_drops", "serve_clients", "try_to_open"):
            getattr(simulation, action)(node)
        else:
            getattr(simulation, action)(name)
