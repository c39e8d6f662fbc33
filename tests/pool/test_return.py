"""A return takes bounded time, whatever state the connection and its server are in."""

from __future__ import annotations

from abs_orm_app.pool.entry import AnyConnection
from tests.support.pools import LATE, AnyPool, Call, opened, ours, pid, use
from tests.support.servers import Server

LIMIT = 2.0  # seconds for a rollback, or `reset`, in a pool with a timeout of 3 s


def test_a_rollback_that_hangs_delays_the_return_by_a_moment(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=1, timeout=3) as pool:
        conn = pool.getconn()
        conn.autocommit = False
        conn.execute("SELECT 1")
        check_return_of_hung(server, pool, conn)


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
