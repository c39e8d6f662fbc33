"""A pool that nobody refers to any more ends its sessions, without a garbage collection."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.pools import LATE, AnyPool, Call, open_sockets, opened, ours, uncollected, use
from tests.support.servers import Server, wait_until

SOON = 2.0 + LATE  # seconds


@pytest.fixture
def _uncollected() -> Iterator[None]:
    with uncollected():
        yield


def open_only(_: AnyPool) -> None: ...


def use_once(pool: AnyPool) -> None:
    use(pool)


def use_by_many(pool: AnyPool) -> None:
    """Some of them wait, and some of the connections are overflow."""
    for call in [Call(use, pool, "SELECT pg_sleep(0.01)") for _ in range(8)]:
        call.result(within=20)


def time_out(pool: AnyPool) -> None:
    held = [pool.getconn() for _ in range(4)]
    with pytest.raises(Exception, match="couldn't get a connection"):
        pool.getconn(timeout=0.05)
    for conn in held:
        pool.putconn(conn)


def return_a_changed_session(pool: AnyPool) -> None:
    conn: Any = pool.getconn()
    conn._pool_entry.dirty = "changed"
    pool.putconn(conn)


def return_in_a_transaction(pool: AnyPool) -> None:
    conn = pool.getconn()
    conn.execute("BEGIN")
    pool.putconn(conn)


def lose_one(pool: AnyPool) -> None:
    pool.getconn()


def replace_all(pool: AnyPool) -> None:
    pool.drain()
    use(pool)


@pytest.mark.usefixtures("_uncollected")
@pytest.mark.parametrize(
    "work",
    [
        open_only,
        use_once,
        use_by_many,
        time_out,
        return_a_changed_session,
        return_in_a_transaction,
        lose_one,
        replace_all,
    ],
)
def test_a_pool_that_is_dropped_without_close_ends_its_sessions(
    shared: Server, work: Callable[[AnyPool], None]
) -> None:
    pool = ours(shared.tcp_conninfo, min_size=3, max_size=4, timeout=20, clean=lambda *_: True)
    pool.open(wait=True, timeout=20)
    work(pool)
    gone = weakref.ref(pool)
    del pool
    wait_until(lambda: gone() is None, "the pool to be gone", SOON)
    wait_until(lambda: open_sockets(shared) == 0, "its connections to be closed", SOON)


@pytest.mark.usefixtures("_uncollected")
def test_a_connection_in_use_outlives_the_dropped_pool_and_ends_with_its_return(
    shared: Server,
) -> None:
    pool = ours(shared.tcp_conninfo, min_size=3, timeout=20)
    pool.open(wait=True, timeout=20)
    conn = pool.getconn()
    give_back = pool.putconn
    del pool
    assert conn.execute("SELECT 1").fetchone() == (1,)
    give_back(conn)
    del give_back, conn
    wait_until(lambda: open_sockets(shared) == 0, "its connections to be closed", SOON)


@pytest.mark.usefixtures("_uncollected")
def test_a_pool_is_served_while_a_dropped_one_is_not_collected_yet(shared: Server) -> None:
    """Neither has a right that only comes back with a finalizer."""
    for _ in range(3):
        first = ours(shared.conninfo, min_size=1, timeout=20)
        first.open(wait=True, timeout=20)
        kept = [first]
        kept.append(kept)  # a cycle
        del first, kept
        with opened(ours, shared.conninfo, min_size=1, max_size=2, timeout=20) as second:
            held = second.getconn()
            Call(use, second).result(within=LATE)  # housekeeping opens one for it
            second.putconn(held)


@pytest.mark.usefixtures("_uncollected")
def test_pools_that_are_dropped_one_after_the_other_leave_no_sessions(shared: Server) -> None:
    """As where a framework clears a dictionary of pools before each fork."""
    pools: dict[str, AnyPool] = {}
    for number in range(12):
        pools["default"] = ours(shared.tcp_conninfo, min_size=3, timeout=20)
        pools["default"].open(wait=True, timeout=20)
        use(pools["default"])
        pools.clear()
        wait_until(
            lambda: open_sockets(shared) <= 3, f"the sessions of round {number} to end", SOON
        )
