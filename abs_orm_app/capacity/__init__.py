"""Sums: the budget of connections, queueing, and advice on sizes."""
