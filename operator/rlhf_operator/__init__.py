"""Decides what an RLHFJob needs next, and has a cluster, or one machine, do it."""
