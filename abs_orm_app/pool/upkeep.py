"""What the housekeeping thread does for one pool. Nothing here waits."""

from __future__ import annotations

from math import inf
from threading import main_thread

from abs_orm_app.pool import messages
from abs_orm_app.pool.causes import Story, ask_if_that_may_be_why
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.connector import Connector
from abs_orm_app.pool.core import Core
from abs_orm_app.pool.growth import RETRY_INTERVAL
from abs_orm_app.pool.leaks import LeakWatch
from abs_orm_app.pool.liveness import server_has_closed
from abs_orm_app.pool.queue import copied
from abs_orm_app.pool.returning import Cleaner
from abs_orm_app.pool.waiting import prepare_timeouts

PAUSE = 0.05  # minimum seconds between two visits to a pool without a call
LEFT_INTERVAL = 0.5  # seconds between two searches for connections whose thread has ended
LOOK_INTERVAL = 10.0  # seconds between two checks of the idle connections


class Upkeep:
    """Maintains one pool, with the parts that do the work."""

    def __init__(
        self, core: Core, connector: Connector, cleaner: Cleaner, *, max_idle: float
    ) -> None:
        self.core, self.connector, self.cleaner = core, connector, cleaner
        self.limits = cleaner.limits
        self.leaks = LeakWatch(core)
        self.story = Story(core)
        self.max_idle = max_idle
        self._looked_at = monotonic()

    def tend(self, now: float) -> float:
        """Maintain the pool; return when to do it again, in `PAUSE` seconds at the earliest."""
        core = self.core
        core.close_discarded()
        lost = core.close_lost() + core.close_stranded()
        due = min(core.closer.tend(now), self.cleaner.tend(now), self.limits.tend(now))
        soon = inf
        if not core.closed:
            core.take_back(now)
            served = min(self._reclaim_left(now), self._serve_waiting(now))
            opened, soon = self.connector.tend(now)
            due = min(
                due,
                served,
                opened,
                self.leaks.tend(now),
                self._close_idle_overflow(now),
                self._look_at_idle(now),
                self.story.tend(now),
            )
            # A request may have started to wait just now, without having called yet.
            if core.queue.waiters or core.queue.unclaimed:
                due = min(due, now + RETRY_INTERVAL)
        # Threads that end with the process do not return connections. That is no leak to report.
        if not core.closed and main_thread().is_alive():
            for entry in lost:
                core.say(messages.connection_lost(core.name, core.holder_of(entry)))
        return min(max(min(due, self.limits.due()), now + PAUSE), soon)

    def _serve_waiting(self, now: float) -> float:
        """Do what can help the waiting requests; return when to look again."""
        core, due = self.core, inf
        if core.queue.waiters:
            core.queue.wake_served()
            core.serve()
            self._reclaim()
            ask_if_that_may_be_why(core, now)
            due = min(now + RETRY_INTERVAL, prepare_timeouts(core, now))
        if (due < inf or core.owes_collection) and self.leaks.collect_garbage(now):
            return now
        return due

    def _reclaim(self) -> None:
        """If all connections are checked out, take back unused ones for the waiting requests."""
        core = self.core
        if core.has_room():
            return
        missing = len(core.queue.waiters)
        in_use = [entry for each in (core, *core.elders()) for entry in each.in_use]
        for entry in sorted(in_use, key=lambda entry: entry.taken_at):
            if missing <= 0:
                return
            conn = entry.weak()
            if conn is not None:
                missing -= core.hooks.reclaim(conn)

    def _reclaim_left(self, now: float) -> float:
        """Reclaim connections of threads that have ended; return when to look again."""
        in_use = self.core.in_use
        for entry in in_use:
            if entry.is_orphaned() and (conn := entry.weak()) is not None:
                self.core.hooks.reclaim(conn)
        return now + LEFT_INTERVAL if in_use else inf

    def _close_idle_overflow(self, now: float) -> float:
        """Close overflow that was idle for `max_idle` seconds; return when to look again."""
        core = self.core
        while len(core.entries) > core.min_size:
            try:
                since: float = core.idle[0]._pool_entry.idle_since
            except IndexError:
                return now + self.max_idle
            if since + self.max_idle > now:
                return since + self.max_idle
            if not core.close_longest_idle(now - self.max_idle):
                return now
        return inf

    def _look_at_idle(self, now: float) -> float:
        """Close idle connections that are expired or that the server has closed, without sending
        anything. Nothing else looks at them while there is no traffic.
        """
        if now - self._looked_at < LOOK_INTERVAL:
            return self._looked_at + LOOK_INTERVAL
        self._looked_at = now
        core = self.core
        if core.hooks.is_gone():
            core.closed = True
            core.close_idle()
            return inf
        # From the recently used end: each goes back to the other end, so their order stays.
        for conn in reversed(copied(core.idle)):
            entry = conn._pool_entry
            if now - entry.idle_since < LOOK_INTERVAL / 2 or not core.take_idle(conn):
                continue
            ended = server_has_closed(conn, entry.poll)
            core.statistics.stale += ended
            if ended or entry.expires_at <= now:
                core.discard(conn)
            else:
                core.idle.appendleft(conn)
                core.look_again()
        return now + LOOK_INTERVAL if core.entries else inf
