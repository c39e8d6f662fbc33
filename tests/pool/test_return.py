"""A return takes bounded time, whatever state the connection and its server are in."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.support.pools import LATE, Call, opened, ours, pid, use
from tests.support.servers import Server

LIMIT = 2.0  # seconds for a rollback, or `reset`, in a pool with a timeout of 3 s


def test_a_rollback_that_hangs_delays_the_return_by_a_moment(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=1, timeout=3) as pool:
        conn = pool.getconn()
        conn.autocommit = False
        conn.execute("SELECT 1")
        hung = pid(conn)
        server.suspend_backend(hung)
        try:
            Call(pool.putconn, conn).result(within=LIMIT + LATE)
            assert conn.closed
            assert use(pool) != hung
        finally:
            server.resume()


def test_a_reset_that_hangs_delays_the_return_by_a_moment(server: Server) -> None:
    def reset(conn: psycopg.Connection[Any]) -> None:
        conn.execute("SELECT 1")

    with opened(ours, server.conninfo, min_size=1, timeout=3, reset=reset) as pool:
        conn = pool.getconn()
        hung = pid(conn)
        server.suspend_backend(hung)
        try:
            Call(pool.putconn, conn).result(within=LIMIT + LATE)
            assert conn.closed
            assert use(pool) != hung
        finally:
            server.resume()
