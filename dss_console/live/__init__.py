"""The live view of the cluster: what the nodes tell each other while a page is open, and what `cluster.watch` sends.

A page or a `cluster.watch` makes this node a *viewer* of the others. It sends each member a lease of three seconds, once a second.
A node with a lease answers with a report twice a second: its own role, log, disk and cache lines, and its new events. All viewers of a node
share these reports. When the last viewer has gone, the leases end, and nothing is sent.

    recorder.py   the events of this node, in a ring (pure)
    messages.py   lease and report, between nodes
    reports.py    this node's own report
    exchange.py   leases out, reports in
    events.py     events of all nodes -> their lines, and what is known about elections (pure)
    judgement.py  reports -> node cards, checks and the verdict (pure)
    panels.py     locks, queues and cache of this node, in a bounded number of rows
    view.py       the parts put together; the viewers
    subscriptions.py  `cluster.watch`

Locks and queues are replicated, so this node shows them from its own state. Only roles, cache lines and the health of the processes
need the other nodes.
"""
