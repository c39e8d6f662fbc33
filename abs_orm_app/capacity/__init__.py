"""Sums: the budget of connections, and the pool for a load."""
