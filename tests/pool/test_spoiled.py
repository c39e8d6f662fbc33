"""A connection on which something was interrupted is closed, and never handed on."""

from __future__ import annotations

import os
import signal
import statistics
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count, product
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from django.db.utils import DataError

from abs_orm_app.pool import closing, returning
from tests.soak.interrupted import interrupted
from tests.support.bytecodes import Interrupted, signals_leave_locks
from tests.support.pools import APP, LATE, AnyPool, Call, opened, ours, pid, use
from tests.support.processes import Watch, run
from tests.support.servers import Server, wait_until
from tests.support.sessions import EVERY_MODE, POOL, Session, begun
from tests.support.spoiling import (
    TABLES,
    acting,
    blocks,
    executemany,
    executemany_of_another_class,
    pipeline,
    seconds_of_ends,
    sweep,
    time_limit,
)

pytestmark = pytest.mark.server(sql=TABLES)


@pytest.mark.usefixtures("unblocked")
@pytest.mark.parametrize(
    ("mode", "statement"),
    [
        pytest.param(POOL, blocks, marks=signals_leave_locks),
        *product(EVERY_MODE, (executemany, executemany_of_another_class, pipeline)),
    ],
)
def test_an_exception_within_psycopg_costs_nobody_else(
    shared: Server, mode: str, statement: Callable[[Session], None]
) -> None:
    with begun(shared, mode, timeout=5) as (begin, _):
        sweep(shared, begin, statement)


class LimitError(Exception):
    """As Celery's for soft time limits. psycopg only logs an `Exception` during a rollback."""


@pytest.mark.parametrize("raised", [LimitError, Interrupted])
def test_what_a_block_has_rolled_back_is_not_committed(
    server: Server, raised: type[BaseException]
) -> None:
    """Nor does the next holder's psycopg believe that the server has prepared its statements."""
    options = {"min_size": 1, "timeout": 20, "kwargs": {"prepare_threshold": 0}}
    with opened(ours, server.conninfo, **options) as pool, server.admin() as admin:
        for at in count(0, 3):
            thrown = Call(_roll_back, pool, at, raised).result(within=LATE)
            with pool.connection() as conn:
                for _ in range(2):
                    conn.execute("SELECT 1")
            rows = admin.execute("SELECT kind FROM kept WHERE key = %s", [at]).fetchall()
            assert not rows, f"point {at}"
            if not thrown:
                break
    assert at > 300


def _roll_back(pool: AnyPool, at: int, raised: type[BaseException]) -> bool:
    """True if it was interrupted."""
    thrown = False

    def throw() -> None:
        nonlocal thrown
        thrown = True
        raise raised

    def fail(conn: psycopg.Connection[Any]) -> None:
        with conn.transaction():
            conn.execute("INSERT INTO kept VALUES (%s, 'rolled back')", [at])
            raise KeyError

    with suppress(psycopg.Error), pool.connection() as conn, conn.transaction():
        conn.execute("SELECT 1")
        with suppress(KeyError, raised), acting(at, throw):
            fail(conn)
    return thrown


@signals_leave_locks
@pytest.mark.parametrize("mode", EVERY_MODE)
def test_signals_during_statements_cost_nobody_else(mode: str) -> None:
    interrupted(mode)


# Statements that run on at the server

SIZE = 3
MOMENT = 1.0  # seconds for a return, usually, on a busy machine
SOON = 2.0  # seconds until a slot is free again
DEADLINE = 10.0  # seconds until the slot of a statement that cannot be cancelled is free


@pytest.mark.usefixtures("unblocked")
@pytest.mark.parametrize("mode", EVERY_MODE)
def test_interrupted_statements_never_exceed_the_limit_as_the_server_counts(
    server: Server, mode: str
) -> None:
    with begun(server, mode, max_size=SIZE, timeout=20) as (begin, _), Watch(server) as watch:
        taken = seconds_of_ends(begin, 5 * SIZE)
        began = monotonic()
        session = begin()
        with session.cursor() as cursor:
            cursor.execute("SELECT 1")
        session.end()
        assert monotonic() - began < SOON + LATE
    assert watch.most <= SIZE
    assert statistics.median(taken) < MOMENT


def test_a_connection_that_its_holder_closes_in_a_statement_never_exceeds_the_limit(
    server: Server,
) -> None:
    """As a thread that ends another one's query, or a handler that has enough."""
    with opened(ours, server.conninfo, min_size=1, max_size=SIZE, timeout=20) as pool:
        with Watch(server) as watch:
            for _ in range(3 * SIZE):
                conn = pool.getconn()
                with time_limit(0.1):
                    conn.execute("SELECT pg_sleep(30)")
                conn.close()
                pool.putconn(conn)
            use(pool)
        assert watch.most <= SIZE


def test_an_interrupted_statement_of_a_suspended_server_keeps_its_slot_until_a_deadline(
    server: Server,
) -> None:
    """The server has not ended its session; a new one would be one too many."""
    with begun(server, POOL, max_size=1, timeout=60) as (begin, pool):
        session = begin()
        with time_limit(0.1), session.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(60)")
        with server.suspended():
            began = monotonic()
            session.end()
            assert monotonic() - began < MOMENT + LATE, "a return does not wait for the server"
            waiting = Call(use, pool)
            wait_until(lambda: pool.get_stats()["pool_opening"] > 0, "a new connection", 60)
            assert DEADLINE / 2 < monotonic() - began < DEADLINE + LATE
        waiting.result(within=20)


def test_before_libpq_17_an_interrupted_statement_of_a_suspended_server_stops_no_other_thread(
    server: Server,
) -> None:
    try:
        result = run(server, interrupt_where_nobody_answers, server.conninfo, str(server.pid))
    finally:
        server.resume()
    assert result.status == 0, result.errors


def interrupt_where_nobody_answers(conninfo: str, postmaster: str) -> None:
    vars(psycopg.capabilities)["has_cancel_safe"] = lambda: False
    with opened(ours, conninfo, min_size=1) as pool:
        conn = pool.getconn()
        with time_limit(0.1):
            conn.execute("SELECT pg_sleep(60)")
        os.kill(int(postmaster), signal.SIGSTOP)
        pool.putconn(conn)
        for _ in range(100):
            began = monotonic()
            sleep(0.01)
            assert monotonic() - began < LATE


def test_a_connection_that_is_closed_in_a_block_which_then_fails_never_exceeds_the_limit(
    server: Server,
) -> None:

    def fail(pool: AnyPool) -> None:
        with pool.connection() as conn, conn.pipeline():
            conn.execute("SELECT pg_sleep(30)")
            conn.pgconn.send_flush_request()
            conn.pgconn.flush()
            wait_until(lambda: is_executing(server), "the statement to run")
            conn.close()
            raise ValueError("a bug of the project")

    with opened(ours, server.conninfo, min_size=1, timeout=20) as pool, Watch(server) as watch:
        for _ in range(3):
            with pytest.raises(ValueError, match="a bug"):
                fail(pool)
    assert watch.most == 1


@pytest.mark.parametrize("what", ["check", "reset", "configure"])
def test_a_function_of_the_project_that_is_ended_never_exceeds_the_limit_as_the_server_counts(
    server: Server, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its statement runs on at the server, which does not notice that the client is gone."""
    monkeypatch.setattr(returning, "LEAST", 0.3)
    slow = threading.Event()

    def wait(conn: psycopg.Connection[Any]) -> None:
        if slow.is_set():
            conn.execute("SELECT pg_sleep(30)")

    with opened(ours, server.conninfo, min_size=2, timeout=0.6, **{what: wait}) as pool:
        slow.set()
        if what == "configure":
            pool.drain()
        until = monotonic() + 2.5
        most = ended = 0
        while monotonic() < until or (ended < 3 and monotonic() < until + 20):  # a busy machine
            try:
                conn = pool.getconn()
            except psycopg.OperationalError:
                ended += 1
            else:
                began = monotonic()
                pool.putconn(conn)
                ended += monotonic() - began > 0.2
            most = max(most, server.sessions(APP))
        assert ended > 2
        assert most <= 2


def test_a_block_of_transaction_that_was_never_left_is_not_the_next_holders(shared: Server) -> None:
    """psycopg counts the blocks of a connection: the next holder's would not commit."""
    with opened(ours, shared.conninfo, min_size=1, timeout=20) as pool:
        for end in ("ROLLBACK", "SELECT 1"):
            conn = pool.getconn()
            block = conn.transaction()
            block.__enter__()
            conn.execute(end)
            pool.putconn(conn)
            with pool.connection() as conn, conn.transaction():
                assert conn.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("what", ["check", "reset", "clean"])
def test_a_block_in_a_function_of_the_project_closes_no_connection(
    shared: Server, what: str
) -> None:
    def block(conn: psycopg.Connection[Any], *_: object) -> bool:
        with conn.transaction():
            conn.execute("SELECT 1")
        return True

    with opened(ours, shared.conninfo, min_size=1, cleans_all=True, **{what: block}) as pool:
        assert len({use(pool, timeout=20) for _ in range(3)}) == 1


@pytest.mark.server({"max_prepared_transactions": "2"})
def test_a_two_phase_transaction_is_not_the_next_holders(server: Server) -> None:
    """psycopg refuses to commit on such a connection."""
    kwargs = {"autocommit": False}
    with opened(ours, server.conninfo, min_size=1, timeout=20, kwargs=kwargs) as pool:
        conn = pool.getconn()
        conn.tpc_begin("mine")
        conn.tpc_prepare()
        pool.putconn(conn)
        with pool.connection() as conn:
            conn.execute("SELECT 1")


# Errors of the server


def test_an_error_of_the_server_closes_no_connection(shared: Server) -> None:
    """Although the project handles another exception meanwhile."""
    with opened(ours, shared.conninfo, min_size=1, timeout=20) as pool, pool.connection() as conn:
        try:
            int("none")
        except ValueError:
            with pytest.raises(psycopg.errors.DivisionByZero):
                conn.cursor().executemany("SELECT 1 / %s", [(0,), (1,)])
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_an_error_of_the_server_in_a_pipeline_closes_no_connection(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=20) as pool, pool.connection() as conn:
        with conn.pipeline(), suppress(psycopg.errors.DivisionByZero), conn.transaction():
            conn.execute("SELECT 1 / 0").fetchone()
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_an_error_whose_causes_go_round_in_a_circle_hangs_nobody(shared: Server) -> None:
    """A project may raise again what Django has translated."""

    def fail(pool: AnyPool) -> None:
        with pool.connection() as conn, conn.pipeline():
            try:
                conn.execute("SELECT 1 / 0").fetchone()
            except psycopg.Error as error:
                translated = DataError()
                translated.__cause__ = error
                raise error from translated

    with opened(ours, shared.conninfo, min_size=1, timeout=20) as pool:
        call = Call(fail, pool)
        with pytest.raises(psycopg.errors.DivisionByZero):
            call.result(within=LATE)


# Requests to cancel


def test_a_request_to_cancel_meets_no_statement_of_the_next_holder(server: Server) -> None:
    """A thread that ends what takes too long may come a moment too late."""
    if not psycopg.capabilities.has_cancel_safe():
        pytest.skip("before libpq 17, a request stops all threads until it has arrived")
    with opened(ours, server.conninfo, min_size=1, timeout=20) as pool:
        conn = pool.getconn()
        server.suspend()
        other = Call(conn.cancel_safe)
        sleep(0.3)
        pool.putconn(conn)
        server.resume()
        other.result(within=LATE)
        assert conn.closed
        use(pool)


def test_what_cancels_configure_meets_no_statement_of_a_holder(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends by itself while the request to cancel is under way."""
    monkeypatch.setattr(returning, "LEAST", 0.3)
    on_its_way = threading.Event()
    send = closing._send

    def send_late(cancel: Any, timeout: float) -> None:
        on_its_way.set()
        sleep(0.3)
        send(cancel, timeout)

    monkeypatch.setattr(closing, "_send", send_late)
    opened_so_far: list[int] = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        opened_so_far.append(pid(conn))
        while len(opened_so_far) == 1 and not on_its_way.is_set():
            conn.execute("SELECT pg_sleep(0.1)")

    options = {"min_size": 1, "timeout": 0.6, "configure": configure}
    with (
        opened(ours, server.conninfo, filled=False, **options) as pool,
        pool.connection(timeout=20) as conn,
    ):
        conn.execute("SELECT pg_sleep(1)")
    assert len(opened_so_far) == 2


# Two threads on one connection


def test_the_connection_that_another_thread_executes_on_is_neither_freed_nor_handed_out(
    shared: Server,
) -> None:
    """It was returned meanwhile, by a garbage collection or a mistake. Its server does not answer
    for a while, so the statement cannot be cancelled at once.
    """
    with opened(ours, shared.conninfo, min_size=2, timeout=20) as pool:
        conn: Any = pool.getconn()
        handle = conn.pgconn
        other = Call(conn.execute, "SELECT pg_sleep(30)")
        wait_until(lambda: is_executing(shared), "the other thread to execute")
        shared.suspend_backend(pid(conn))
        try:
            pool.putconn(conn)
            until = monotonic() + 1.0
            while monotonic() < until:
                was_freed = handle.pgconn_ptr is None
                assert not (was_freed and conn.lock.locked()), "freed while it is in use"
                with pool.connection() as another:
                    assert another is not conn
        finally:
            shared.resume()
        with pytest.raises(psycopg.Error):
            other.result(within=LATE)
        wait_until(lambda: pool.get_stats()["pool_available"] == 2, "a new connection")
        assert conn not in list(pool.idle)


def is_executing(server: Server) -> bool:
    with server.admin() as admin:
        query = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        return bool(admin.execute(query).fetchall())
