"""The sizes that a pool can have."""

from __future__ import annotations


def checked_sizes(min_size: int, max_size: int | None) -> tuple[int, int]:
    """Return both; `max_size` is `min_size` by default. Raises `ValueError` for invalid sizes."""
    if max_size is None:
        max_size = min_size
    if min_size < 0:
        raise ValueError("min_size cannot be negative")
    if max_size < min_size:
        raise ValueError("max_size must be greater or equal than min_size")
    if max_size == 0:
        raise ValueError("if min_size is 0 max_size must be greater than 0")
    return min_size, max_size
