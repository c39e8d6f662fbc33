"""Decides how many connections to open now. Pure functions: no lock, no clock, no I/O."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import ceil, inf

RETRY_INTERVAL = 0.2  # seconds between attempts to connect while a request waits
PARALLEL_CONNECTS = 16  # `num_workers`: connections opened at a time for waiting requests
EACH_CORE = 2  # connections opened at a time per processor, if the server is near
WORK = 0.0025  # CPU seconds that a new connection costs, including the server's new process
NEAR = 0.01  # seconds within which a nearby server opens the first connection
REFILL = 2  # connections opened at a time when no request waits
REFILL_RETRY = 1.0  # seconds until a failed refill is retried; the interval then doubles each time,
REFILL_RETRY_MOST = 30.0  # up to this
PASSWORD_RETRY_MOST = 10.0  # maximum seconds until a refused password is retried
ROTATION_RETRY_MOST = 1.0  # the same while the password may be changing
CHECK_RETRY_MOST = 0.5  # the same for a connection that the project's check has refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """What the number of connections to open depends on. Durations are in seconds."""

    waiting: int = 0  # requests waiting for a connection
    awaited: bool = False  # a call to `wait` is waiting for the pool to reach its size
    opening: int = 0
    open: int = 0  # idle, in use, or in between
    size: int
    limit: int
    parallel: int = PARALLEL_CONNECTS
    cores: int = os.cpu_count() or 1
    fastest: float = inf  # the shortest time to open a connection; inf: none was opened yet
    failing: bool = False  # the last attempt failed
    since_attempt: float = inf  # since the last attempt started
    retry_after: float = RETRY_INTERVAL  # from the last attempt to the next while a request waits
    refill_after: float = inf  # from the last attempt to the retry of a failed refill; inf: never


def connections_to_open(now: Situation) -> int:
    """Return how many attempts to start.

    Connections for waiting requests are opened many at a time (`at_a_time`). Those up to the pool
    size are opened a few at a time, because running requests need the CPU more. After a fault, and
    when an attempt takes long, one more is started at each interval while a request waits, because
    the network may have recovered. The limit is never exceeded.
    """
    missing = now.size - now.open - now.opening
    parallel = at_a_time(now)
    filling = parallel if now.awaited else REFILL
    wanted = max(
        min(now.waiting, parallel) - now.opening,
        min(missing, filling - now.opening),
    )
    if now.failing:
        wanted = int(missing > 0 and not now.opening and now.since_attempt >= now.refill_after)
    awaited = now.waiting > 0 or (now.awaited and missing > 0)
    if awaited and now.since_attempt >= now.retry_after:
        wanted = max(wanted, 1)
    return max(0, min(wanted, now.limit - now.open - now.opening))


def at_a_time(now: Situation) -> int:
    """Return how many connections to open at a time for waiting requests.

    Opening one costs CPU time, here and on the server, so more at a time only slow each other down.
    With a distant server, however, most of the time is spent waiting.
    """
    most = EACH_CORE * now.cores
    if now.fastest < inf:
        most = max(most, ceil(now.fastest / WORK))
    elif now.since_attempt >= NEAR:
        return now.parallel
    return min(most, now.parallel)


def retry_after(lasts: float, most: float) -> float:
    """Return the seconds between two attempts while a request waits, in an outage that has lasted
    `lasts` seconds.
    """
    return max(RETRY_INTERVAL, min(lasts, most))


def refill_after(lasts: float) -> float:
    """Return the seconds between two attempts while no request waits, in an outage that has lasted
    `lasts` seconds.
    """
    return min(max(REFILL_RETRY, lasts), REFILL_RETRY_MOST)


def checked_sizes(min_size: int, max_size: int | None) -> tuple[int, int]:
    """Return both; `max_size` defaults to `min_size`. Raises `ValueError` for invalid sizes."""
    if max_size is None:
        max_size = min_size
    if min_size < 0:
        raise ValueError("min_size cannot be negative")
    if max_size < min_size:
        raise ValueError("max_size must be greater or equal than min_size")
    if max_size == 0:
        raise ValueError("if min_size is 0 max_size must be greater than 0")
    return min_size, max_size
