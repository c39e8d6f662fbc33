"""The connection pool. It depends on psycopg, but not on Django."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool as HardenedPool

__all__ = ["HardenedPool"]


def __getattr__(name: str) -> Any:
    # Import on first use, so that a process without a pool does not load psycopg_pool.
    if name == "HardenedPool":
        from abs_orm_app.pool import registry  # noqa: F401 - registers the fork and exit hooks
        from abs_orm_app.pool.pool import HardenedPool

        return HardenedPool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
