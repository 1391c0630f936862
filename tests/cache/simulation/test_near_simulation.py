"""The promise with near clients: no read of a client is stale either, whatever happens to clients, connections and nodes.

The simulation of the nodes has a tier of clients below it. Each flaw that the design prevents there is put in, and must be found.
"""

from __future__ import annotations

import pytest
from adversary import ClientAdversary
from simulated_cluster import Simulation
from simulated_parts import Flaws, StaleRead

STEPS = 200
#: For each flaw, a seed that finds it: a search that starts there ends soon.
FOUND_WITH = {
    "no_client_lease_check": 2,
    "client_lease_counts_from_its_arrival": 4,
    "client_installs_everything": 0,
    "client_keeps_entries_when_it_subscribes_again": 1,
    "forked_client_keeps_entries": 23,
    "acknowledges_before_clients_confirm": 0,
    "client_leases_not_in_the_log": 58,
    "grant_overtakes_drops": 154,
    "later_grant_extends_deadlines": 8,
    "session_opens_before_client_leases_are_over": 9,
    "acknowledges_before_its_session_is_open": 14,
    "overtaken_fetch_is_installed": 0,
    "holder_not_recorded": 0,
    "gone_client_is_forgotten": 63,
    "revoked_node_keeps_clients": 1,
    "snapshot_keeps_clients": 69,
}
SEEDS_MAX = 1000


@pytest.mark.parametrize("start", range(0, 120, 40))
def test_no_read_of_a_client_is_stale_and_all_calls_end(start):
    answered = 0
    for seed in range(start, start + 40):
        simulation = Simulation(client_count=3)
        ClientAdversary(simulation, seed).run(STEPS)
        simulation.calm_down()
        assert simulation.is_quiet, f"seed {seed}: something waits forever"
        answered += simulation.reads_answered
    assert answered > 8000, "the adversary does too little"


@pytest.mark.parametrize("flaw", FOUND_WITH)
def test_every_flaw_of_clients_and_their_nodes_is_found(flaw):
    first = FOUND_WITH[flaw]
    for seed in [*range(first, first + 20), *range(SEEDS_MAX)]:
        simulation = Simulation(Flaws(**{flaw: True}), client_count=3)
        try:
            ClientAdversary(simulation, seed).run(STEPS)
        except StaleRead:
            return
    pytest.fail("not found")


@pytest.mark.parametrize("flaws", [Flaws(), Flaws(client_grant_not_capped=True)], ids=["as built", "broken"])
def test_a_grant_just_before_the_end_of_the_nodes_lease(flaws):
    """The node is cut off and revoked. A client whose lease is longer than what remained of the node's would read on."""
    simulation = Simulation(flaws, client_count=3)
    nodes = list(simulation.nodes)

    def work(*connected):
        for _ in range(4):
            simulation.work(list(connected))
            for node in connected:
                simulation.try_to_open(node)
                simulation.serve_clients(node)

    def exchange(*calls):
        for call in calls:
            call()
        for _ in range(4):
            simulation.serve_client("c3")
            simulation.client_receive("c3")

    simulation.put("n1", "a")
    work(*nodes)
    client, node = simulation.clients["c3"], simulation.nodes["n3"]
    for _ in range(3):
        exchange(lambda: simulation.client_renew("c3"), lambda: simulation.client_get("c3", "a"))
        work(*nodes)
        exchange()
    assert client.entries["a"]
    simulation.now = (node.near.lease.valid_until - 1000) / node.rate - 0.02
    simulation.put("n1", "a")
    work("n1", "n2")
    exchange(lambda: simulation.client_renew("c3"))
    old, put = client.entries["a"][0], simulation.history["a"][-1][1]
    while simulation.shown["a"] < put:
        simulation.advance(0.005)
        work("n1", "n2")
    assert old < put
    if flaws.client_grant_not_capped:
        with pytest.raises(StaleRead):
            simulation.client_get("c3", "a")
    else:
        simulation.client_get("c3", "a")
        assert client.clock() > client.lease_until
