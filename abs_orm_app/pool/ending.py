"""What happens to a pool before a fork and at the end of its process."""

from __future__ import annotations

import threading
from contextlib import suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

LAST_WAIT = 2.0  # seconds; by then a process that has begun to end is over


def settle(pool: HardenedPool, timeout: float) -> None:
    """Wait up to `timeout` seconds for connections that are being opened, and open no more."""
    deadline = monotonic() + timeout
    pool.connector.paused = True
    while (pool.connector.attempts or _is_cleaning(pool)) and monotonic() < deadline:
        sleep(0.005)


def _is_cleaning(pool: HardenedPool) -> bool:
    return pool.cleaner is not None and pool.cleaner.busy


def resume(pool: HardenedPool) -> None:
    """Start to open connections again, after `settle`."""
    pool.connector.paused = False
    if not pool.closed:
        pool.call_housekeeping()


def close_for_good(pool: HardenedPool, timeout: float) -> None:
    """At the end of the process: close, in about `timeout` seconds."""
    pool.ended = True
    pool.close(timeout)
    close_orphans(pool)


def close_orphans(pool: HardenedPool) -> None:
    """Close the connections in use whose thread has ended without returning them."""
    for entry in list(pool.in_use):
        conn = entry.weak()
        if conn is not None and entry.is_orphaned():
            with suppress(ValueError):  # another thread is returning it
                pool.hang_up(conn)
                pool.putconn(conn)


def let_the_process_end(pool: HardenedPool) -> None:
    """Wait a little, if this is a daemon thread, which still runs for a moment.

    It then ends with the process; an error now would only make it print a traceback.
    """
    if pool.ended and threading.current_thread() is not threading.main_thread():
        sleep(LAST_WAIT)
