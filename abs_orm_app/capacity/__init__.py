"""Calculations: the connection budget, and the pool size for a load."""
