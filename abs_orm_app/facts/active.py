"""Reads the pool object of this process: the settings in effect, and its connections."""

from __future__ import annotations

import math
from dataclasses import dataclass

from abs_orm_app.facts.connecting import errors_of, wrapper_of
from abs_orm_app.facts.databases import NEVER, Configured
from abs_orm_app.facts.failure import Failure, explain


@dataclass(frozen=True, kw_only=True)
class Active:
    """The pool object of this process."""

    pool_class: str
    size: int
    overflow: int
    pre_ping: bool
    recycle: float  # seconds; -1: never
    timeout: float  # seconds
    opened: bool  # False: this process has not used it yet
    connections: int
    idle: int
    waiting: int

    def differs(self, configured: Configured) -> tuple[str, ...]:
        """Return the fields whose value is not the configured one."""
        fields = ("size", "overflow", "pre_ping", "recycle", "timeout")
        return tuple(name for name in fields if getattr(self, name) != configured.value(name))


def active(configured: Configured) -> Active | Failure | None:
    """Read the pool object of this process; None if the alias has no pool."""
    if not configured.pools:
        return None
    wrapper = wrapper_of(configured)
    try:
        pool = wrapper.pool
    except errors_of(wrapper) as error:
        return explain(error, configured)
    stats = {} if pool.closed else pool.get_stats()
    return Active(
        pool_class=f"{type(pool).__module__}.{type(pool).__qualname__}",
        size=pool.min_size,
        overflow=pool.max_size - pool.min_size,
        # psycopg_pool does not tell whether it checks; Django makes it check where this is set.
        pre_ping=getattr(pool, "pre_ping", configured.health_checks),
        recycle=NEVER if pool.max_lifetime == math.inf else pool.max_lifetime,
        timeout=pool.timeout,
        opened=not pool.closed,
        connections=stats.get("pool_size", 0),
        idle=stats.get("pool_available", 0),
        waiting=stats.get("requests_waiting", 0),
    )
