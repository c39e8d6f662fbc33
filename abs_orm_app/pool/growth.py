"""How many connections to open now: one pure function. No lock, no clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from abs_orm_app.pool.constants import RETRY_INTERVAL

PARALLEL_CONNECTS = 16  # `num_workers`: connections opened at a time for requests that wait
REFILL = 2  # connections opened at a time when no request waits
REFILL_RETRY = 1.0  # seconds until a failed refill is tried again; then twice as long each time,
REFILL_RETRY_MOST = 30.0  # up to this


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """What the number of connections to open depends on. Durations are in seconds."""

    waiting: int = 0  # requests that wait for a connection
    awaited: bool = False  # a call waits until the pool has its size
    opening: int = 0
    open: int = 0  # idle, in use, or in between
    size: int
    limit: int
    parallel: int = PARALLEL_CONNECTS
    failing: bool = False  # the last attempt failed
    since_attempt: float = inf  # since the last attempt began
    refill_after: float = inf  # after the last attempt, try a failed refill again; inf: never


def connections_to_open(now: Situation) -> int:
    """Return how many attempts to begin.

    Connections that requests wait for are opened all at once. Those up to the pool size are opened
    a few at a time, because the running requests need the processors more. After a fault, and
    when an attempt takes long, one more is started at each interval while a request waits, because
    the network may work again. There are never more than the limit allows.
    """
    missing = now.size - now.open - now.opening
    filling = now.parallel if now.awaited else REFILL
    wanted = max(
        min(now.waiting, now.parallel) - now.opening,
        min(missing, filling - now.opening),
    )
    if now.failing:
        wanted = int(missing > 0 and not now.opening and now.since_attempt >= now.refill_after)
    awaited = now.waiting > 0 or (now.awaited and missing > 0)
    if awaited and now.since_attempt >= RETRY_INTERVAL:
        wanted = max(wanted, 1)
    return max(0, min(wanted, now.limit - now.open - now.opening))


def refill_after(lasts: float) -> float:
    """Return the seconds between two attempts that no request waits for, in an outage that has
    lasted `lasts` seconds.
    """
    return min(max(REFILL_RETRY, lasts), REFILL_RETRY_MOST)
