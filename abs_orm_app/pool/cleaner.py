"""Cleans connections whose session was changed, in threads of its own, before the next holder.

No lock guards it. A thread runs while there is work and a little longer, so that a project which
changes each session does not start a thread for each request. Only the housekeeping thread starts
them: no exception is raised in it from outside, so a start cannot be interrupted. It takes a right
for each, which the thread puts back when it ends.
"""

from __future__ import annotations

import logging
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from math import inf
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from abs_orm_app.pool import messages
from abs_orm_app.pool.constants import RETRY_INTERVAL
from abs_orm_app.pool.entry import AnyConnection

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

logger = logging.getLogger("abs_orm_app.pool")

Clean = Callable[[AnyConnection, Any], bool]

THREADS = 4  # at a time: a thread that waits for a hung server must not delay the others
LINGER = 1.0  # seconds that a thread waits for more work


class Cleaner:
    """Cleans the connections of one pool.

    `clean` gets a connection and its entry's `dirty`, and returns False if the connection must be
    replaced. It must have a deadline. `always`: every connection that is returned is cleaned.
    """

    def __init__(self, pool: HardenedPool, clean: Clean, *, always: bool) -> None:
        self.always = always
        self._pool, self._clean = pool, clean
        self.reset()

    def reset(self) -> None:
        """In a forked child: forget the parent's connections and threads."""
        self._dirty: deque[AnyConnection] = deque()
        self._rights = deque(range(THREADS))
        self._bell = allocate_lock()
        self._busy: set[int] = set()

    @property
    def busy(self) -> bool:
        return bool(self._dirty or self._busy)

    def add(self, conn: AnyConnection) -> None:
        """Clean a connection that no other thread has; then give it to the pool, or close it."""
        self._dirty.append(conn)
        self._call_threads()

    def tend(self, now: float) -> float:
        """Start the threads that are missing; return when to do it again (`monotonic`)."""
        while self._rights and self._lacks_threads():
            right = self._rights.pop()
            name = f"{self._pool.name}-cleaner"
            try:
                Thread(target=self._run, args=(right,), name=name, daemon=True).start()
            except RuntimeError:  # the process is out of threads, or about to end
                self._rights.append(right)
                return now + RETRY_INTERVAL
        return inf

    def _lacks_threads(self) -> bool:
        """True if there is more work than threads that linger, or have just been started."""
        return len(self._dirty) > THREADS - len(self._rights) - len(self._busy)

    def _call_threads(self) -> None:
        if self._lacks_threads():
            self._pool.call_housekeeping()
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it was rung

    def _run(self, right: int) -> None:
        rights, bell = self._rights, self._bell  # `reset` replaces them in a forked child
        try:
            self._work(right)
            while bell.acquire(True, LINGER):
                self._work(right)
        finally:
            rights.append(right)
        if self._dirty:  # it was added just now, when this thread still counted
            self._pool.call_housekeeping()

    def _work(self, right: int) -> None:
        """Clean all waiting connections, together with the threads that linger."""
        while self._dirty:
            try:
                conn: Any = self._dirty.popleft()
            except IndexError:
                return
            self._busy.add(right)
            if self._dirty:
                self._call_threads()
            try:
                self._clean_one(conn)
            finally:
                self._busy.discard(right)

    def _clean_one(self, conn: Any) -> None:
        pool, entry = self._pool, conn._pool_entry
        clean, problem = False, None
        try:
            clean = not pool.closed and self._clean(conn, entry.dirty)
        except Exception as error:
            problem = messages.reset_failed(pool.name, error)
        if clean:
            entry.dirty = None
            entry.idle_since = monotonic()
            pool.statistics.cleaned += 1
            pool.add(conn)
        else:
            pool.discard(conn)
        if problem:  # last, because a log handler may use the pool
            logger.warning(problem)
