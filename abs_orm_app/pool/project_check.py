"""The project's own check of a connection, `check=`, called at each checkout with a time limit.

It replaces the ping. It runs in the thread that checks out, because it may use state of that
thread; if it takes too long, the housekeeping thread shuts its connection down.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from abs_orm_app.pool.entry import AnyConnection, Entry, shut_down

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool


class ProjectCheck:
    """The check of one pool. The thread that takes an entry out of `_running` decides the result
    of that check.
    """

    def __init__(self, function: Callable[[AnyConnection], object]) -> None:
        self._function = function
        self._running: dict[Entry, float] = {}  # until when (`monotonic`)

    def passes(self, pool: HardenedPool, conn: AnyConnection, entry: Entry, timeout: float) -> bool:
        """False if the check raises an exception, or takes longer than `timeout` seconds."""
        until = self._running[entry] = monotonic() + timeout
        if pool.due > until:
            pool.call_housekeeping()
        passed = False
        try:
            self._function(conn)
            passed = True
        except Exception:  # any exception means: do not hand it out
            passed = False
        finally:
            in_time = self._running.pop(entry, None) is not None
        return passed and in_time and not conn.closed

    def tend(self, now: float) -> float:
        """End the checks that take too long; return when to do it again (`monotonic`)."""
        due = inf
        for entry, until in tuple(self._running.items()):
            if until > now:
                due = min(due, until)
            elif self._running.pop(entry, None) is not None:
                conn = entry.weak()
                if conn is not None and not conn.closed:
                    shut_down(conn)
        return due
