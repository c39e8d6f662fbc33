"""Ends what takes too long on a connection: a project's own `check` or `reset`, and a rollback.

They run in the thread that checks out or returns, because they may use state of that thread. If one
takes too long, the housekeeping thread shuts its connection down, which fails what waits on it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from abs_orm_app.pool.entry import AnyConnection, Entry, shut_down

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool


class TimeLimits:
    """Those of one pool. The thread that takes an entry out of `_running` decides whether what runs
    on its connection was in time.
    """

    def __init__(self) -> None:
        self._running: dict[Entry, float] = {}  # until when (`monotonic`)

    def call(
        self, pool: HardenedPool, conn: Any, seconds: float, function: Callable[[Any], object]
    ) -> bool:
        """Call `function` with the connection; False if it took longer than `seconds`.

        Raises what the function raises.
        """
        entry: Entry = conn._pool_entry
        until = self._running[entry] = monotonic() + seconds
        if pool.due > until:
            pool.call_housekeeping()
        try:
            function(conn)
        finally:
            in_time = self._running.pop(entry, None) is not None
        return in_time

    def tend(self, now: float) -> float:
        """End what takes too long; return when to do it again (`monotonic`)."""
        for entry, until in self._running.copy().items():
            if until <= now and self._running.pop(entry, None) is not None:
                conn: AnyConnection | None = entry.weak()
                if conn is not None and not conn.closed:
                    shut_down(conn)
        return self.due()

    def due(self) -> float:
        """When the first of them takes too long (`monotonic`)."""
        return min(self._running.copy().values(), default=inf)
