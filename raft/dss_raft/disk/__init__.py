"""What a node keeps on its disk: log, term and vote, snapshots."""
