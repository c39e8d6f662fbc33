"""When a thread cannot start, for lack of memory or of threads, the pool goes on afterwards."""

from __future__ import annotations

import mmap
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest

from tests.support import threads
from tests.support.pools import LATE, AnyPool, Call, opened, ours, use
from tests.support.processes import run
from tests.support.servers import Server, wait_until
from tests.support.threads import FAILURES, fails

MANY = 10  # failures in a row
SHORT = 0.6  # seconds
TIMEOUT = 6.0
MOST = 6  # threads that one of these may start


# Each begins with an open pool of size 1 and overflow 1, which may be full or not.


def connect(pool: AnyPool) -> None:
    use(pool)


def connect_overflow(pool: AnyPool) -> None:
    with pool.connection(), pool.connection():
        pass


def clean(pool: AnyPool) -> None:
    conn: Any = pool.getconn()
    conn._pool_entry.dirty = "changed"
    pool.putconn(conn)


def warn(pool: AnyPool) -> None:
    """Housekeeping warns of a connection that was lost, in a thread of its own."""
    pool.getconn()


WORK = (connect, connect_overflow, clean, warn)


@pytest.mark.parametrize("failure", [failure.__name__ for failure in FAILURES])
@pytest.mark.parametrize("count", [1, MANY])
def test_a_thread_that_does_not_start_delays_nobody_for_long(
    shared: Server, failure: str, count: int
) -> None:
    result = run(shared, lack_threads, shared.conninfo, failure, str(count), within=100)
    assert result.status == 0, result.errors


def lack_threads(conninfo: str, failure: str, count: str) -> None:
    """Let each thread in turn fail that the pool starts for some work.

    In a process of its own: all its pools depend on the same thread.
    """
    for work in WORK:
        for first in range(MOST if count == "1" else 2):
            if not goes_on(conninfo, work, getattr(threads, failure), first, int(count)):
                break


def goes_on(
    conninfo: str, work: Callable[[AnyPool], None], failure: threads.Failure, first: int, count: int
) -> bool:
    """Check that the pool serves, and one that is made afterwards; False if no start failed."""
    where = f"{work.__name__}, after {first} threads"
    options = {"min_size": 1, "max_size": 2, "timeout": TIMEOUT, "clean": lambda *_: True}
    pool, later = ours(conninfo, **options), ours(conninfo, **options)
    try:
        with fails(failure, first, count) as starts:
            pool.open()
            began = monotonic()
            Call(work, pool).result(within=TIMEOUT + LATE)
            # Each wait may be as long as the interval at which a request looks after the pool.
            assert monotonic() - began < LATE + 0.25 * count, where
            wait_until(lambda: settled(pool), f"the pool to settle: {where}", LATE + 0.25 * count)
            failed = starts() > first
        for each in (pool, later):
            each.open()
            Call(connect_overflow, each).result(within=LATE)
            wait_until(lambda each=each: settled(each), f"the end: {where}", LATE)  # type: ignore[misc]
    finally:
        pool.close(timeout=0.1)
        later.close(timeout=0.1)
    return failed


def settled(pool: AnyPool) -> bool:
    """All connections are idle, and no slot is taken by an attempt."""
    with suppress(psycopg.OperationalError):
        use(pool, timeout=0.2)
    stats = pool.get_stats()
    return bool(stats["pool_available"] == stats["pool_size"] >= 1 and not stats["pool_opening"])


# A real lack of memory


def test_all_pools_serve_again_as_soon_as_there_is_memory_again(shared: Server) -> None:
    result = run(shared, lack_memory, shared.conninfo, within=100)
    assert result.status == 0, result.errors


def lack_memory(conninfo: str) -> None:
    """The address space is used up for a moment, while connections are lost and opened again."""
    sys.unraisablehook = lambda _: None
    options = {"min_size": 2, "max_size": 6, "timeout": 5}
    go, over = Event(), Event()

    def replace(pool: AnyPool) -> None:
        go.wait(20)
        while not over.is_set():
            with suppress(MemoryError, RuntimeError, psycopg.Error):
                conn = pool.getconn(0.1)
                conn.close()
                pool.putconn(conn)

    def take_the_rest() -> None:
        go.wait(20)
        size, taken = 2**22, []
        while not over.is_set():
            try:
                taken.append(mmap.mmap(-1, size))
            except (MemoryError, OSError):
                size = max(size // 4, mmap.PAGESIZE)

    with opened(ours, conninfo, **options) as one, opened(ours, conninfo, **options) as other:
        calls = [Call(replace, pool) for pool in 3 * [one, other]]
        calls += [Call(take_the_rest) for _ in range(2)]
        keep_stacks(4)
        soft = address_space() + 16 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
        try:
            go.set()
            sleep(SHORT)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            over.set()
        for call in calls:
            call.result(within=LATE)
        with opened(ours, conninfo, **options) as later:
            for pool in (one, other, later):
                for call in [Call(use, pool, "SELECT 1", LATE) for _ in range(12)]:
                    call.result(within=2 * LATE)


def keep_stacks(count: int) -> None:
    """The C library keeps the stacks of threads that have ended. The next threads take them, and
    so begin although there is no memory for anything else.
    """
    for call in [Call(sleep, 0.05) for _ in range(count)]:
        call.result(within=LATE)


def address_space() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()
