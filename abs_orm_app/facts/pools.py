"""The pools that this process has for aliases of DATABASES."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connections

from abs_orm_app.pool.registry import notice_fork, pools

if TYPE_CHECKING:
    from abs_orm_app.pool import HardenedPool
    from abs_orm_app.pool.snapshot import Snapshot


def current_pools() -> dict[str, HardenedPool]:
    """The pools that this process has for aliases of DATABASES, by alias."""
    notice_fork()
    mine = pools.copy()
    return {alias: mine[alias] for alias in connections if alias in mine}


def snapshots() -> list[Snapshot]:
    """Every pool that this process has for an alias of DATABASES."""
    from abs_orm_app.pool.snapshot import snapshot

    return [snapshot(pool) for pool in current_pools().values()]
