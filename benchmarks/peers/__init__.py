"""The systems that `bench_peers.py` compares, each as a module with the same two names: `start` and `works`."""
