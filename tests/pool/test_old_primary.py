"""A primary that was frozen while another server took over, and thaws: no write goes to it.

With asynchronous replication nothing else tells: it still says that it is a primary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from threading import Event

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from tests.support.pools import LATE, AnyPool, Call, opened, ours
from tests.support.servers import Server, wait_until

CREATE = "CREATE TABLE written (key bigint)"
IN_FLIGHT = 2
ROOM = 60.0  # seconds
MOMENT = 3.0  # seconds for a write; what takes longer may hang


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    with Server(sql=[CREATE]) as first, Server(sql=[CREATE]) as second:
        yield first, second


def conninfo(first: Server, second: Server) -> str:
    ports = f"port={first.port},{second.port}"
    return f"{first.tcp_conninfo} host=127.0.0.1,127.0.0.1 {ports} connect_timeout=2"


def write(pool: AnyPool) -> int:
    """Write as a request does; the port of the server that has taken it."""
    with pool.connection() as conn:
        conn.execute("INSERT INTO written VALUES (1)")
        return int(conn.info.port)


def is_written_at(pool: AnyPool, server: Server) -> bool:
    """A write that hangs is one more statement in flight."""
    call = Call(write, pool)
    call.join(MOMENT)
    with suppress(psycopg.OperationalError, PoolTimeout):
        return not call.is_alive() and call.result(within=0) == server.port
    return False


def test_no_write_goes_to_a_frozen_primary_that_thaws(servers: tuple[Server, Server]) -> None:
    first, second = servers
    go_on = Event()

    def statement_in_flight() -> int:
        with pool.connection() as conn:
            conn.execute("SELECT pg_sleep(1)")
            assert go_on.wait(ROOM)  # it returns its connection when the test says so
            return int(conn.info.port)

    with ExitStack() as cleanup:
        pool = cleanup.enter_context(
            opened(ours, conninfo(first, second), min_size=IN_FLIGHT + 1, max_size=12, timeout=20)
        )
        assert write(pool) == first.port
        calls = [Call(statement_in_flight) for _ in range(IN_FLIGHT)]
        wait_until(lambda: first_is_busy(first), "the statements to run")
        first.suspend()
        cleanup.callback(first.resume)
        wait_until(lambda: is_written_at(pool, second), "the pool to follow", ROOM)
        first.resume()
        go_on.set()
        ports = [call.result(within=ROOM) for call in calls]
        assert ports == [first.port] * IN_FLIGHT, "they had hung, and go on"
        taken = {write(pool) for _ in range(4 * IN_FLIGHT)}
        taken |= {call.result(ROOM) for call in [Call(write, pool) for _ in range(6)]}
        assert taken == {second.port}
        wait_until(lambda: first.sessions() == 0, "its connections to be closed", 10 + LATE)


def first_is_busy(server: Server) -> bool:
    with server.admin() as admin:
        row = admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"
        ).fetchone()
    return row is not None and row[0] == IN_FLIGHT
