"""The data of a node on its disk: log, term and vote, snapshots."""
