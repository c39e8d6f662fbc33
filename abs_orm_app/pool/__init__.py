"""The connection pool. It knows psycopg, and nothing of Django."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool as HardenedPool

__all__ = ["HardenedPool"]


def __getattr__(name: str) -> Any:
    # Loaded at its first use: a process that needs no pool does not load psycopg_pool.
    if name == "HardenedPool":
        from abs_orm_app.pool import registry  # noqa: F401 - for a fork, and the end of the process
        from abs_orm_app.pool.pool import HardenedPool

        return HardenedPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
