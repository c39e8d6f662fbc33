"""What the housekeeping thread does for one pool. Nothing here waits."""

from __future__ import annotations

from math import inf
from threading import main_thread
from typing import TYPE_CHECKING

from abs_orm_app.pool import messages
from abs_orm_app.pool.constants import RETRY_INTERVAL
from abs_orm_app.pool.errors import prepare_timeouts
from abs_orm_app.pool.garbage import COLLECT_AFTER, COLLECT_INTERVAL, Collector

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

LEAST = 0.05  # seconds between two visits to a pool without a call

collector = Collector()


def tend(pool: HardenedPool, now: float) -> float:
    """Maintain the pool; return when to do it again (`monotonic`), in `LEAST` at the earliest."""
    lost = close_lost(pool)
    due = pool.cleaner.tend(now) if pool.cleaner else inf
    if not pool.closed:
        due = min(
            due,
            pool.connector.tend(now),
            pool.time_limits.tend(now),
            _serve_waiting(pool, now),
            pool.leaks.tend(now),
            _close_unused(pool, now),
        )
    for text in lost:
        pool.say(text)
    return max(due, now + LEAST)


def close_lost(pool: HardenedPool) -> list[str]:
    """Close connections that were garbage-collected before their return; return what to log."""
    said = []
    for entry in list(pool.entries):
        if entry.weak() is None:
            # A finalizer may still have it, but must not use it any more.
            entry.pgconn.finish()
            pool.in_use.discard(entry)
            try:
                pool.entries.remove(entry)
            except KeyError:  # another thread closes the pool
                continue
            pool.statistics.leaked += 1
            # Threads that end with the process return nothing, and that is no leak to report.
            if not pool.closed and main_thread().is_alive():
                said.append(messages.connection_lost(pool.name, entry.holder()))
    return said


def _serve_waiting(pool: HardenedPool, now: float) -> float:
    """Do what can help the waiting requests; return when to look again."""
    due = inf
    if pool.queue.waiters:
        pool.queue.wake_served()
        pool.serve()
        _reclaim_unused(pool)
        due = min(now + RETRY_INTERVAL, prepare_timeouts(pool, now))
    if (due < inf or pool.owes_collection) and _collect_garbage(pool, now):
        return now
    return due


def _reclaim_unused(pool: HardenedPool) -> None:
    """Take back connections that are checked out but not used, for the waiting requests."""
    if pool.reclaim is None or pool.has_room():
        return
    missing = len(pool.queue.waiters)
    for entry in sorted(pool.in_use, key=lambda entry: entry.taken_at):
        if missing <= 0:
            return
        conn = entry.weak()
        missing -= conn is not None and pool.reclaim(conn)


def _collect_garbage(pool: HardenedPool, now: float) -> bool:
    """Collect garbage that may hold connections; True if that was done.

    Each thread that ended with a connection is a reason once. Otherwise a request must have waited
    long. A collection that may not end before the next deadline is postponed until none waits.
    """
    if len(pool.entries) - len(pool.idle) < pool.max_size:
        pool.owes_collection = False
        return False
    waiters = list(pool.queue.waiters)
    orphans = [e for e in list(pool.in_use) if not e.examined and e.is_orphaned()]
    if waiters and not orphans:
        waits_long = now - waiters[0].began > COLLECT_AFTER
        if not waits_long or now - pool.collected_at <= COLLECT_INTERVAL:
            return False
    if not collector.fits(min((waiter.deadline for waiter in waiters), default=inf)):
        pool.owes_collection = True
        return False
    pool.owes_collection = False
    for entry in orphans:
        entry.examined = True
    pool.collected_at = now
    collector.collect()
    return True


def _close_unused(pool: HardenedPool, now: float) -> float:
    """Close overflow that was idle for `max_idle` seconds; return when to look again."""
    while len(pool.entries) > pool.min_size:
        since = pool.idle.since()
        if since is None:
            return now + pool.max_idle
        if since + pool.max_idle > now:
            return since + pool.max_idle
        if not pool.close_longest_idle(now - pool.max_idle):
            return now
    return inf
