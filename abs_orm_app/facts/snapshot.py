"""The state and the counters of one pool at one moment: the source of all metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abs_orm_app.pool.causes import cause_of
from abs_orm_app.pool.statistics import Counters, Distribution, metrics_of, number

if TYPE_CHECKING:
    from abs_orm_app.pool.messages import Cause
    from abs_orm_app.pool.placement import ServerInUse
    from abs_orm_app.pool.pool import HardenedPool

EVICTIONS = ("stale", "expired", "misplaced", "leaked")  # counters of a snapshot


@dataclass(kw_only=True)
class Snapshot(Counters):
    """One pool. Its counters and distributions start at zero when it is created."""

    alias: str

    # Connections
    size: int = number(
        "gauge",
        "size",
        "Connections that are kept open (DB_POOL_SIZE).",
        otel=("db.client.connection.idle.min",),
    )
    limit: int = number(
        "gauge",
        "limit",
        "Connections at most (DB_POOL_SIZE + DB_MAX_OVERFLOW).",
        otel=("db.client.connection.idle.max", "db.client.connection.max"),
    )
    in_use: int = number("gauge", "connections_in_use", "Connections that are checked out.")
    idle: int = number("gauge", "connections_idle", "Connections that are idle.")
    opening: int = number("gauge", "connections_opening", "Connections that are being opened.")
    waiting: int = number(
        "gauge",
        "requests_waiting",
        "Requests that wait for a connection.",
        otel=("db.client.connection.pending_requests",),
        unit="{request}",
    )
    unused: int = number(
        "gauge",
        "connections_unused",
        "Connections in use that nothing needs: a request keeps one until it ends,"
        " a thread outside of a request until another waits.",
        otel=("abs_orm_app.connection.unused",),
    )
    pinned: Mapping[str, int] = number(
        "reasons",
        "connections_pinned",
        "Connections in use whose session is needed, by the reason.",
        otel=("abs_orm_app.connection.pinned",),
    )
    trouble: Mapping[str, int] = number(
        "reasons",
        "trouble",
        "1 while requests wait, fail or cannot write, by the cause.",
        otel=("abs_orm_app.pool.trouble",),
        unit="{pool}",
    )
    cause: Cause | None  # of that trouble
    servers: tuple[ServerInUse, ...]  # of the open connections

    # Seconds
    waits: Distribution = number(
        "histogram",
        "wait_seconds",
        "How long the queued checkouts waited.",
        otel=("db.client.connection.wait_time",),
        unit="s",
    )
    uses: Distribution = number(
        "histogram",
        "use_seconds",
        "How long connections were checked out.",
        otel=("db.client.connection.use_time",),
        unit="s",
    )
    creates: Distribution = number(
        "histogram",
        "connect_seconds",
        "How long opening a connection took.",
        otel=("db.client.connection.create_time",),
        unit="s",
    )

    @property
    def evicted(self) -> Mapping[str, int]:
        return {reason: getattr(self, reason) for reason in EVICTIONS}

    @property
    def connections(self) -> int:
        return self.idle + self.in_use + self.opening

    @property
    def overflow(self) -> int:
        return max(0, self.connections - self.size)


GAUGES = metrics_of("gauge", Snapshot)
COUNTERS = metrics_of("counter", Snapshot)
HISTOGRAMS = metrics_of("histogram", Snapshot)
REASONS = metrics_of("reasons", Snapshot)


def snapshot(pool: HardenedPool) -> Snapshot:
    now, counted = pool.get_stats(), pool.statistics
    pinned, unused = pool.core.count_pins()
    cause = cause_of(pool.core)
    name = cause.name if cause else pool.core.trouble
    connections, idle, opening = now["pool_size"], now["pool_available"], now["pool_opening"]
    return Snapshot(
        alias=pool.name,
        size=now["pool_min"],
        limit=now["pool_max"],
        idle=idle,
        in_use=connections - idle - opening,
        opening=opening,
        waiting=now["requests_waiting"],
        unused=unused,
        pinned=pinned,
        trouble={name: 1} if name else {},
        cause=cause,
        servers=tuple(pool.placement.servers()),
        **{name: getattr(counted, name) for name in COUNTERS},
        **{name: getattr(counted, name).distribution() for name in HISTOGRAMS},
    )
