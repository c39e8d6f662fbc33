"""The state and the counters of one pool at one moment. All metrics are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from abs_orm_app.pool.histogram import Distribution
from abs_orm_app.pool.pins import count_pins
from abs_orm_app.pool.statistics import (
    CLEANED,
    EXPIRED,
    LEAKED,
    MISPLACED,
    POOL_OPENING,
    STALE,
    TIMEOUTS,
)

if TYPE_CHECKING:
    from abs_orm_app.pool.placement import ServerInUse
    from abs_orm_app.pool.pool import HardenedPool

EVICTIONS = ("stale", "expired", "misplaced", "leaked")  # counters of a snapshot


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One pool. The counters and the distributions begin at zero with the pool."""

    alias: str

    # Connections
    size: int  # kept open
    limit: int  # size and overflow
    idle: int
    in_use: int
    opening: int
    waiting: int  # requests that wait for a connection

    # Counters
    checkouts: int  # all of them, also those that got no connection
    queued: int  # checkouts that found no idle connection and waited
    timeouts: int  # checkouts that got no connection in time
    errors: int  # checkouts that got no connection, timeouts included
    connects: int  # attempts to open a connection
    connect_errors: int  # attempts that failed
    stale: int  # connections found closed or hung
    leaked: int  # connections that were never returned
    returned_broken: int

    # Seconds
    waits: Distribution  # of the queued
    uses: Distribution
    creates: Distribution

    # By reason
    expired: int = 0  # connections closed because of their age, or by `drain`
    misplaced: int = 0  # connections closed because of their server's role
    cleaned: int = 0  # connections that were cleaned because their session was changed
    servers: tuple[ServerInUse, ...] = ()  # the servers of the open connections

    # Of those in use
    pinned: Mapping[str, int] = field(default_factory=dict)  # by the reason
    unused: int = 0  # that nothing needs, and that are kept until the request ends

    @property
    def evicted(self) -> Mapping[str, int]:
        """Connections that the pool has replaced, by the reason."""
        return {reason: getattr(self, reason) for reason in EVICTIONS}

    @property
    def lost(self) -> int:
        """Deprecated, removed in the next release: stale and leaked connections together."""
        return self.stale + self.leaked

    @property
    def connections(self) -> int:
        return self.idle + self.in_use + self.opening

    @property
    def overflow(self) -> int:
        """Connections beyond the pool size."""
        return max(0, self.connections - self.size)


def snapshot(pool: HardenedPool) -> Snapshot:
    stats = pool.get_stats()
    timings = pool.timings()
    pinned, unused = count_pins(pool)
    connections, idle, opening = stats["pool_size"], stats["pool_available"], stats[POOL_OPENING]
    return Snapshot(
        alias=pool.name,
        size=stats["pool_min"],
        limit=stats["pool_max"],
        idle=idle,
        in_use=connections - idle - opening,
        opening=opening,
        waiting=stats["requests_waiting"],
        checkouts=stats.get("requests_num", 0),
        queued=stats.get("requests_queued", 0),
        timeouts=stats.get(TIMEOUTS, 0),
        errors=stats.get("requests_errors", 0),
        connects=stats.get("connections_num", 0),
        connect_errors=stats.get("connections_errors", 0),
        stale=stats.get(STALE, 0),
        leaked=stats.get(LEAKED, 0),
        expired=stats.get(EXPIRED, 0),
        misplaced=stats.get(MISPLACED, 0),
        cleaned=stats.get(CLEANED, 0),
        servers=tuple(pool.placement.servers()),
        returned_broken=stats.get("returns_bad", 0),
        pinned=pinned,
        unused=unused,
        waits=timings.waits,
        uses=timings.uses,
        creates=timings.creates,
    )
