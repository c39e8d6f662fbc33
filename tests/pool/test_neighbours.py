"""What happens to one connection costs no other one."""

from __future__ import annotations

from collections.abc import Callable
from time import sleep
from typing import Any

import psycopg
import pytest

from abs_orm_app.pool.pre_ping import PING_AFTER
from tests.support.pools import LATE, AnyPool, give_back, opened, ours, pid
from tests.support.processes import backends
from tests.support.servers import Server, wait_until

SIZE, LIMIT = 4, 20


def take_all(pool: AnyPool) -> list[psycopg.Connection[Any]]:
    return [pool.getconn(timeout=LATE) for _ in range(LIMIT)]


def check_that_all_survived_but(pool: AnyPool, server: Server, before: set[int], one: int) -> None:
    """Housekeeping has had time to close what it wants to; the next checkouts have pinged."""
    sleep(PING_AFTER + 0.3)
    give_back(pool, take_all(pool))
    wait_until(lambda: one not in backends(server), "the one to be closed")
    left = before & backends(server)
    assert len(left) == LIMIT - 1, f"{len(left)} of {LIMIT - 1} survived"


def killed(server: Server, conn: psycopg.Connection[Any]) -> None:
    with server.admin() as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid(conn)])


def timed_out_in_a_transaction(server: Server, conn: psycopg.Connection[Any]) -> None:
    conn.execute("SET idle_in_transaction_session_timeout = 50")
    conn.execute("BEGIN")
    wait_until(lambda: pid(conn) not in backends(server), "the server to end the session")


@pytest.mark.parametrize("end", [killed, timed_out_in_a_transaction])
@pytest.mark.parametrize("idle", [False, True], ids=["in_use", "idle"])
def test_the_end_of_one_session_closes_no_other_connection(
    shared: Server, end: Callable[[Server, psycopg.Connection[Any]], None], idle: bool
) -> None:
    with opened(ours, shared.conninfo, min_size=SIZE, max_size=LIMIT, timeout=20) as pool:
        conns = take_all(pool)
        before = {pid(conn) for conn in conns}
        conn = conns.pop(0)
        one = pid(conn)
        if idle:
            give_back(pool, [*conns, conn])  # `conn` is the first that is used again
            conns.clear()
            end(shared, conn)
            del conn
            give_back(pool, [pool.getconn(timeout=LATE)])
        else:
            give_back(pool, conns)
            end(shared, conn)
            with pytest.raises(psycopg.Error) as caught:
                conn.execute("SELECT 1")
            pool.saw_error(conn, caught.value)  # as the engine does
            pool.putconn(conn)
            del conn
        check_that_all_survived_but(pool, shared, before, one)


def in_a_transaction(conn: psycopg.Connection[Any]) -> None:
    conn.execute("BEGIN")


def in_a_failed_transaction(conn: psycopg.Connection[Any]) -> None:
    conn.execute("BEGIN")
    with pytest.raises(psycopg.Error):
        conn.execute("SELECT 1/0")


def in_a_query(conn: psycopg.Connection[Any]) -> None:
    conn.pgconn.send_query(b"SELECT pg_sleep(2)")


def in_a_copy(conn: psycopg.Connection[Any]) -> None:
    conn.pgconn.send_query(b"COPY (SELECT 1) TO STDOUT")


def checked_out(pool: AnyPool) -> None:
    pool.putconn(pool.getconn(timeout=LATE))


def checked(pool: AnyPool) -> None:
    pool.check()


@pytest.mark.parametrize("look", [checked_out, checked])
@pytest.mark.parametrize("left", [in_a_transaction, in_a_failed_transaction, in_a_query, in_a_copy])
def test_an_idle_connection_that_answers_wrongly_is_the_only_one_that_is_closed(
    shared: Server, left: Callable[[psycopg.Connection[Any]], None], look: Callable[[AnyPool], None]
) -> None:
    """Somebody has used it through a handle that was kept. The server answers, so no other
    connection is suspicious.
    """
    with opened(ours, shared.conninfo, min_size=SIZE, max_size=LIMIT, timeout=20) as pool:
        conns = take_all(pool)
        before = {pid(conn) for conn in conns}
        kept = conns[0]
        one = pid(kept)
        if look is checked:
            conns.reverse()  # it is looked at first; and a checkout takes the one returned last
        give_back(pool, conns)
        left(kept)
        sleep(PING_AFTER + 0.2)
        look(pool)
        check_that_all_survived_but(pool, shared, before, one)
