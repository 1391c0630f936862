"""The lab: pages on which a person stops, pauses and cuts off the nodes of `make run`, and sees what the cluster does.

It is served by the process of `make run`, on loopback only. `relays` carries the links between the nodes, so that they can be cut;
`desk` carries out what the lab asks about processes; `access` decides who may use the lab; `server` answers the browser; `scenes` are
the lessons.
"""
