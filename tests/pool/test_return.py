"""A return takes bounded time, whatever state the connection and its server are in."""

from __future__ import annotations

from threading import Event
from time import monotonic
from typing import Any

import pytest
from psycopg.pq import TransactionStatus

from abs_orm_app.pool import returning
from abs_orm_app.pool.entry import AnyConnection
from tests.support.pools import LATE, AnyPool, Call, opened, ours, pid, use
from tests.support.servers import Server, wait_until

LIMIT = 2.0  # seconds for a rollback, or `reset`, in a pool with a timeout of 3 s


def test_a_rollback_that_hangs_delays_the_return_by_a_moment(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=1, timeout=3) as pool:
        conn = pool.getconn()
        conn.autocommit = False
        conn.execute("SELECT 1")
        check_return_of_hung(server, pool, conn)


def test_a_rollback_that_hangs_in_a_closed_pool_delays_the_return_by_a_moment(
    server: Server,
) -> None:
    with opened(ours, server.conninfo, min_size=1, timeout=3) as pool:
        conn = pool.getconn()
        conn.execute("BEGIN")
        server.suspend_backend(pid(conn))
        try:
            pool.close(timeout=0.1)
            Call(pool.putconn, conn).result(within=LIMIT + LATE)
        finally:
            server.resume()


def test_a_session_whose_cleaning_fails_is_not_handed_on(shared: Server) -> None:
    def clean(*_: object) -> bool:
        raise ValueError("a bug of the project")

    with opened(ours, shared.conninfo, min_size=1, timeout=20, clean=clean) as pool:
        conn: Any = pool.getconn()
        changed = pid(conn)
        conn._pool_entry.dirty = "changed"
        pool.putconn(conn)
        assert use(pool) != changed


def test_a_cleaning_that_hangs_is_ended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's `_configure_connection` is called in it."""

    def clean(conn: AnyConnection, _: object) -> bool:
        conn.execute("SELECT pg_sleep(60)")
        return True

    monkeypatch.setattr(returning, "CLEANING", 0.3)
    with opened(ours, server.conninfo, min_size=1, timeout=20, clean=clean) as pool:
        conn: Any = pool.getconn()
        conn._pool_entry.dirty = "changed"
        pool.putconn(conn)
        began = monotonic()
        use(pool)
        assert monotonic() - began < LATE


@pytest.mark.parametrize("is_done", [False, True])
def test_a_rollback_that_begins_while_housekeeping_looks_at_the_pool_is_ended(
    server: Server, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    """It begins after housekeeping has looked for what hangs, and before it goes to sleep."""
    looking, over = Event(), Event()

    with opened(ours, server.conninfo, min_size=1, timeout=3) as pool:
        conn = pool.getconn()
        conn.autocommit = False
        conn.execute("SELECT 1")
        server.suspend_backend(pid(conn))
        last = pool.upkeep if is_done else pool.upkeep.leaks
        tend = last.tend

        def pause(now: float) -> float:
            due = float(tend(now))
            looking.set()
            over.wait(20)
            return due

        monkeypatch.setattr(last, "tend", pause)
        try:
            pool.core.call_housekeeping()
            assert looking.wait(20)
            call = Call(pool.putconn, conn)
            active = TransactionStatus.ACTIVE
            wait_until(lambda: conn.pgconn.transaction_status == active, "the rollback to begin")
            over.set()
            call.result(within=LIMIT + LATE)
        finally:
            over.set()
            server.resume()


def test_a_reset_that_hangs_delays_the_return_by_a_moment(server: Server) -> None:
    def reset(conn: AnyConnection) -> None:
        conn.execute("SELECT 1")

    with opened(ours, server.conninfo, min_size=1, timeout=3, reset=reset) as pool:
        check_return_of_hung(server, pool, pool.getconn())


def check_return_of_hung(server: Server, pool: AnyPool, conn: AnyConnection) -> None:
    hung = pid(conn)
    server.suspend_backend(hung)
    try:
        Call(pool.putconn, conn).result(within=LIMIT + LATE)
        assert conn.closed
        assert use(pool) != hung
    finally:
        server.resume()
