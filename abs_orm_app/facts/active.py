"""Reads the pools of this process: the settings in effect, and their connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import connections
from psycopg import Error

from abs_orm_app.environment import POOL_PARAMETERS
from abs_orm_app.facts.connecting import ERRORS, wrapper_of
from abs_orm_app.facts.databases import Configured, Value, pool_values
from abs_orm_app.facts.failure import Failure, failure_of
from abs_orm_app.facts.snapshot import Snapshot, snapshot
from abs_orm_app.pool.causes import cause_of
from abs_orm_app.pool.registry import notice_fork, pools
from abs_orm_app.pool.server_errors import FULL, classify

if TYPE_CHECKING:
    from abs_orm_app.pool import HardenedPool


@dataclass(frozen=True, kw_only=True)
class Active:
    pool_class: str
    settings: Mapping[str, Value]  # in effect, by field of PoolSettings
    opened: bool  # False: this process has not used it yet
    connections: int
    idle: int
    waiting: int
    trouble: str = ""  # why requests wait or fail now, here or in another process

    def differs(self, configured: Configured) -> tuple[str, ...]:
        return tuple(
            field for field, value in self.settings.items() if value != configured.value(field)
        )


def active(configured: Configured) -> Active | Failure | None:
    """Read the pool object of this process; None if the alias has no pool."""
    if not configured.pools:
        return None
    try:
        pool = wrapper_of(configured).pool
    except ERRORS as error:
        return failure_of(error, configured)
    return in_effect(pool, checks=configured.health_checks)


def in_effect(pool: Any, *, checks: bool) -> Active:
    """Describe a pool as it is now. `checks`: its pre-ping setting, if it does not expose one."""
    stats = {} if pool.closed else pool.get_stats()
    return Active(
        pool_class=f"{type(pool).__module__}.{type(pool).__qualname__}",
        settings=pool_values(
            {name: getattr(pool, name) for name in POOL_PARAMETERS.values() if hasattr(pool, name)},
            # psycopg_pool does not say whether it checks; Django makes it check if this is set.
            pre_ping=getattr(pool, "pre_ping", checks),
        ),
        opened=not pool.closed,
        connections=stats.get("pool_size", 0),
        idle=stats.get("pool_available", 0),
        waiting=stats.get("requests_waiting", 0),
        trouble=_trouble(pool),
    )


def _trouble(pool: Any) -> str:
    if (core := getattr(pool, "core", None)) is None or pool.closed:
        return ""
    cause = cause_of(core)
    return cause.text if cause else ""


def current_pools() -> dict[str, HardenedPool]:
    """Return this process's pools for the aliases of DATABASES, by alias."""
    notice_fork()
    mine = pools.copy()
    return {alias: mine[alias] for alias in connections if alias in mine}


def snapshots() -> list[Snapshot]:
    return [snapshot(pool) for pool in current_pools().values()]


T = TypeVar("T")

STATEMENT_TIMEOUT = 2000  # ms


def is_full(error: BaseException) -> bool:
    return classify(error).problem == FULL


def ask_borrowed(alias: str, read: Callable[[Any], T]) -> T | None:
    """Query a full server over an idle connection of this process's pool.

    Returns the result of `read`; None if no connection is idle, or the query fails. This delays no
    request: while requests wait, no connection is idle.
    """
    pool = current_pools().get(alias)
    if pool is None or pool.closed or not pool.idle:
        return None
    with suppress(Error):
        conn = pool.getconn(timeout=0.1)
        try:
            with conn.transaction():
                conn.execute(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT}")
                return read(conn)
        finally:
            pool.return_unchanged(conn)
    return None
