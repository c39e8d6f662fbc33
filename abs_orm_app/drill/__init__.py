"""Proves each promise of the pool on a live database."""
