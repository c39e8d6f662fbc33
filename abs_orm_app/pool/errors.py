"""The errors of requests that get no connection, with a description of the pool.

A thousand requests may time out at once, so they share one description. The housekeeping thread
makes it just before the first deadline, because it takes system calls, and after each of them a
thread that competes with a thousand others may have to wait long.
"""

from __future__ import annotations

from heapq import nsmallest
from math import inf
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING

from psycopg_pool import PoolClosed, PoolTimeout

from abs_orm_app.pool import messages
from abs_orm_app.pool.constants import RETRY_INTERVAL
from abs_orm_app.pool.pins import count_pins, holder_of
from abs_orm_app.pool.silence import look_at, silence

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

SHARED = 0.05  # seconds for which all requests that time out share one description
OLDEST = 1.0  # seconds; up to this age it is also used while another thread makes a new one
AHEAD = 2 * RETRY_INTERVAL  # seconds before the first deadline; housekeeping runs twice in that
LEADERS = 4  # requests that wake at the same time when many time out, see `queue.py`

_taken_at = attrgetter("taken_at")
_deadline = attrgetter("deadline")


def timeout_error(pool: HardenedPool, timeout: float) -> PoolTimeout:
    at, text = pool.described
    now = monotonic()
    if now - at > SHARED:
        if now - at <= OLDEST:
            pool.described = (now, text)  # for the others, while this thread makes a new one
        text = _describe(pool, timeout)
        pool.described = (monotonic(), text)
    error = PoolTimeout(messages.pool_timeout(timeout, text))
    fault = pool.connector.fault
    error.__cause__ = fault.error if fault else None
    return error


def prepare_timeouts(pool: HardenedPool, now: float) -> float:
    """If a deadline is near, describe the pool and let the first waiters lead.

    For housekeeping. Returns when to do it again (`monotonic`).
    """
    first = nsmallest(LEADERS, list(pool.queue.waiters), key=_deadline)
    if not first or first[0].deadline - now > AHEAD:
        return inf
    if now - pool.described[0] > SHARED:
        text = _describe(pool, first[0].deadline - first[0].began)
        pool.described = (monotonic(), text)
    for waiter in first:
        waiter.lead()
    return max(first[0].deadline, now) + SHARED


def _describe(pool: HardenedPool, waited: float) -> str:
    lines = look_at(entry.pgconn for entry in list(pool.in_use))
    longest = min(list(pool.in_use), key=_taken_at, default=None)
    return messages.why_nothing_came(
        pool.name,
        size=pool.min_size,
        limit=pool.max_size,
        connections=len(pool.entries),
        in_use=len(pool.in_use),
        idle=len(pool.idle),
        opening=len(pool.connector.attempts),
        waiting=len(pool.queue.waiters),
        longest=holder_of(pool, longest) if longest else None,
        unused=count_pins(pool)[1],
        fault=pool.connector.fault,
        silence=silence(lines, waited),
    )


def closed_error(pool: HardenedPool) -> PoolClosed:
    state = "already closed" if pool.was_opened else "not open yet"
    return PoolClosed(f"the pool {pool.name!r} is {state}")
