"""Raft without I/O: no loop, socket, file, clock or global randomness.

Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (the paper); Ongaro, "Consensus: Bridging Theory and
Practice" (the thesis).
"""
