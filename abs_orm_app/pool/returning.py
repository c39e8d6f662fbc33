"""Makes a returned connection fit for its next holder.

A transaction is rolled back and the project's `reset` is called, with a time limit, in the
returning thread. A session that was changed (`Entry.dirty`) is cleaned in threads of the pool.

No lock guards these. A cleaner's thread runs while there is work and a little longer, so that a
project that changes every session does not start a thread per request. Only the housekeeping thread
starts them: no exception is raised in it from outside, so a start cannot be interrupted.
"""

from __future__ import annotations

import logging
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from psycopg import ProgrammingError
from psycopg.pq import TransactionStatus

from abs_orm_app.pool import messages, threads
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.closing import cancel_handle
from abs_orm_app.pool.core import Core
from abs_orm_app.pool.entry import IN_TRANSACTION, AnyConnection, Entry
from abs_orm_app.pool.growth import RETRY_INTERVAL

logger = logging.getLogger("abs_orm_app.pool")

LEAST = 2.0  # minimum seconds for the project's functions, even with a very short timeout
MOST = 10.0
CLEANING = 10.0  # seconds for `Hooks.clean`
THREADS = 4  # at a time: a thread that waits for a hung server must not delay the others
LINGER = 1.0  # seconds that a thread waits for more work

Reset = Callable[[AnyConnection], object]


def prepare_timeout(timeout: float) -> float:
    """Seconds that `configure` and `reset` may take in a pool with this timeout."""
    return max(LEAST, min(MOST, timeout / 3))


class TimeLimits:
    """Limits the time of calls on a connection: the project's `check` or `reset`, and a rollback.

    They run in the thread that checks out or returns, because they may use that thread's state. If
    one takes too long, the housekeeping thread shuts down its connection, which makes the call
    fail. The thread that takes an entry out of `_running` decides whether the call was in time.
    """

    def __init__(self) -> None:
        self._running: dict[Entry, float] = {}  # the deadlines (`monotonic`)

    def call(
        self, core: Core, conn: Any, seconds: float, function: Callable[[Any], object]
    ) -> bool:
        """Call `function` with the connection; False if it took longer than `seconds`.

        Raises what the function raises.
        """
        entry: Entry = conn._pool_entry
        until = self._running[entry] = monotonic() + seconds
        if core.due > until:
            core.call_housekeeping()
        try:
            function(conn)
        finally:
            in_time = self._running.pop(entry, None) is not None
        return in_time

    def tend(self, now: float) -> float:
        """End calls that take too long; return when to run again (`monotonic`)."""
        for entry, until in list(self._running.items()):
            if until <= now and self._running.pop(entry, None) is not None:
                entry.cancel = cancel_handle(entry.pgconn)  # the server may be executing
                entry.shut_down()
        return self.due()

    def due(self) -> float:
        """The earliest deadline (`monotonic`)."""
        return min(list(self._running.values()), default=inf)


def make_idle(
    core: Core, limits: TimeLimits, conn: Any, reset: Reset | None, *, later: bool = False
) -> tuple[bool, str]:
    """Roll back the transaction of a returned connection and call `reset`.

    `later`: only mark it, and let the cleaner do so. Returns whether it is fit for the next holder,
    and what to log.
    """
    entry: Entry = conn._pool_entry
    status = entry.pgconn.transaction_status
    if status == TransactionStatus.ACTIVE:
        return False, messages.returned_active(core.name)
    if entry.spoiled or conn.lock.locked():
        return False, messages.returned_spoiled(core.name)
    in_transaction = status in IN_TRANSACTION
    text = messages.rolled_back(core.name) if in_transaction else ""
    if later:
        entry.unfinished = True
        return True, ""
    entry.unfinished = False

    def tidy(conn: AnyConnection) -> None:
        if in_transaction:
            conn.rollback()
        if reset is not None and not core.closed and not conn.closed:
            reset(conn)
            if conn.pgconn.transaction_status != TransactionStatus.IDLE:
                raise ProgrammingError("it is left in a transaction")

    try:
        in_time = limits.call(core, conn, prepare_timeout(core.timeout), tidy)
    except Exception as error:
        return False, messages.reset_failed(core.name, error)
    return in_time and not conn.closed, text


class Cleaner:
    """Cleans connections with `Hooks.clean`, and completes returns that may not wait."""

    def __init__(self, core: Core, reset: Reset | None) -> None:
        self.always = core.hooks.cleans_all
        self.limits = TimeLimits()
        self._core, self._reset = core, reset
        self.reset()

    def reset(self) -> None:
        """In a forked child: forget the parent's connections and threads."""
        self._dirty: deque[AnyConnection] = deque()
        self._threads: list[threads.Worker] = []
        self._bell = allocate_lock()
        self._busy: dict[int, None] = {}

    @property
    def busy(self) -> bool:
        return bool(self._dirty or self._busy)

    def add(self, conn: AnyConnection) -> None:
        """Clean a connection that no other thread has; then give it to the pool, or close it."""
        self._dirty.append(conn)
        self._call_threads()

    def tend(self, now: float) -> float:
        """Start missing threads; return when to run again (`monotonic`)."""
        self._threads = [thread for thread in self._threads if thread.alive]
        while len(self._threads) < THREADS and self._lacks_threads():
            try:
                self._threads.append(threads.start(f"{self._core.name}-cleaner", self._run))
            except (RuntimeError, MemoryError):  # out of threads or memory, or the process ends
                return now + RETRY_INTERVAL
        return now + RETRY_INTERVAL if self._dirty else inf

    def _lacks_threads(self) -> bool:
        """True if there is more work than threads that linger or were just started."""
        return len(self._dirty) > len(self._threads) - len(self._busy)

    def _call_threads(self) -> None:
        if self._lacks_threads():
            self._core.call_housekeeping()
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it has rung already

    def _run(self) -> None:
        bell = self._bell  # `reset` replaces it in a forked child
        self._work()
        while bell is self._bell and bell.acquire(True, LINGER):
            self._work()

    def _work(self) -> None:
        """Clean the waiting connections until none is left, together with the other threads."""
        while self._dirty:
            try:
                conn: Any = self._dirty.popleft()
            except IndexError:
                return
            self._busy[id(conn)] = None
            if self._dirty:
                self._call_threads()
            try:
                self._clean_one(conn)
            finally:
                self._busy.pop(id(conn), None)

    def _clean_one(self, conn: Any) -> None:
        core, entry = self._core, conn._pool_entry
        clean, problem = False, ""
        cleaned: list[bool] = []
        try:
            clean = not core.closed
            if clean and entry.unfinished:
                clean, problem = make_idle(core, self.limits, conn, self._reset)
                core.statistics.returned_broken += not clean
            if clean and (entry.dirty is not None or self.always):
                in_time = self.limits.call(
                    core, conn, CLEANING, lambda c: cleaned.append(core.hooks.clean(c, entry.dirty))
                )
                clean = in_time and cleaned[0]
                core.statistics.cleaned += clean
        except Exception as error:
            clean, problem = False, messages.reset_failed(core.name, error)
        if clean:
            entry.dirty = None
            entry.idle_since = monotonic()
            core.add(conn)
        else:
            core.discard(conn)
        if problem:  # last, because a log handler may use the pool
            logger.warning(problem)
