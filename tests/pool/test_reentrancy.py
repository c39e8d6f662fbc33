"""The pool is used in finalizers, in signal and log handlers, and by two threads at once."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from tests.support.pools import APP, LATE, AnyPool, Call, opened, ours, pid, use
from tests.support.servers import Server, wait_until

# Garbage


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_garbage_collected_generator_may_return_its_connection(shared: Server) -> None:
    def stream(pool: AnyPool) -> Iterator[Any]:
        myself: list[Any] = [pool]
        myself.append(myself)  # a cycle, which only the garbage collector frees
        conn = pool.getconn()
        try:
            yield myself
        finally:
            pool.putconn(conn)

    with opened(ours, shared.conninfo, min_size=2, timeout=20) as pool:
        for _ in range(20):
            streaming = stream(pool)
            next(streaming).append(streaming)
            del streaming
            gc.collect()
            wait_until(lambda: shared.sessions(APP) <= 2, "the lost session to end")
        for call in [Call(use, pool) for _ in range(6)]:
            call.result(within=20 + LATE)
        wait_until(lambda: pool.get_stats()["pool_available"] == 2, "all to be back")
        assert pool.get_stats()["pool_size"] == 2
        wait_until(lambda: shared.sessions(APP) <= 2, "the lost sessions to end")


def test_each_leaked_connection_is_counted_once(shared: Server) -> None:
    """Even where the next connection has the same address in memory."""
    with opened(ours, shared.conninfo, min_size=1, max_size=2, timeout=20) as pool:
        for number in range(1, 31):
            pool.getconn()
            use(pool)
            wait_until(lambda n=number: leaked(pool) == n, "the loss to be counted")  # type: ignore[misc]
        assert leaked(pool) == 30


def leaked(pool: AnyPool) -> int:
    stats = pool.get_stats()
    return int(stats.get("connections_leaked", stats.get("connections_lost", 0)))


# Two threads


def test_returning_a_connection_twice_at_the_same_time_is_refused_once(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=5) as pool:
        for _ in range(300):
            conn = pool.getconn()
            start = threading.Barrier(2)

            def give_back(conn: Any = conn, start: threading.Barrier = start) -> bool:
                start.wait()
                try:
                    pool.putconn(conn)
                except ValueError:
                    return False
                return True

            assert sorted(call.result(5) for call in [Call(give_back), Call(give_back)]) == [
                False,
                True,
            ]
            assert pool.get_stats()["pool_available"] == 1


# Signals


def test_a_signal_handler_uses_the_pool_at_any_point(shared: Server) -> None:
    served: list[int] = []
    with opened(ours, shared.conninfo, min_size=2, max_size=3, timeout=5) as pool:

        def handle(*_: object) -> None:
            conn = pool.getconn(timeout=2)
            served.append(pid(conn))
            pool.putconn(conn)

        over = threading.Event()

        def send_signals() -> None:
            while not over.wait(0.003):
                os.kill(os.getpid(), signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, handle)
        sender = Call(send_signals)
        try:
            end = monotonic() + 2
            while monotonic() < end or len(served) <= 50:
                assert monotonic() < end + 30, "the handler was not called"
                pool.putconn(pool.getconn(timeout=2))
                pool.get_stats()
        finally:
            over.set()
            sender.join(5)
            signal.signal(signal.SIGUSR1, before)
        assert pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"]


# Logs


class Querying(logging.Handler):
    """Uses the pool for each record, like a handler that stores records in the database."""

    def __init__(self, pool: AnyPool) -> None:
        super().__init__()
        self.pool = pool
        self.kept: list[str] = []
        self.errors: list[Exception] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            use(self.pool, timeout=6)
            self.kept.append(record.getMessage())
        except psycopg.Error as error:
            self.errors.append(error)


@pytest.mark.parametrize("logger", ["abs_orm_app.pool"])
@pytest.mark.parametrize("case", ["outage", "rollback", "leak", "lost"])
def test_a_log_handler_may_use_the_pool_that_logs(server: Server, case: str, logger: str) -> None:
    with opened(ours, server.conninfo, min_size=1, timeout=8, leak_seconds=0.4) as pool:
        handler = Querying(pool)
        loggers = [logging.getLogger(name) for name in (logger, "psycopg.pool")]
        for each in loggers:
            each.addHandler(handler)
        try:
            CASES[case](server, pool)
            wait_until(lambda: bool(handler.kept or handler.errors), "the record")
            if case != "outage":  # the first record is about the outage, and cannot be stored
                assert not handler.errors
            assert handler.kept
            assert Call(use, pool).result(within=LATE)
        finally:
            for each in loggers:
                each.removeHandler(handler)


def have_an_outage(server: Server, pool: AnyPool) -> None:
    server.stop()
    call = Call(use, pool)
    sleep(0.5)
    server.start()
    began = monotonic()
    call.result(within=8)
    assert monotonic() - began < LATE  # a handler that blocks takes 6 s


def return_in_a_transaction(_: Server, pool: AnyPool) -> None:
    conn = pool.getconn()
    conn.autocommit = False
    conn.execute("SELECT 1")
    began = monotonic()
    pool.putconn(conn)
    assert monotonic() - began < LATE  # a handler that blocks takes 6 s


def hold_for_long(_: Server, pool: AnyPool) -> None:
    conn = pool.getconn()
    sleep(0.8)
    pool.putconn(conn)


def lose(_: Server, pool: AnyPool) -> None:
    pool.getconn()


CASES: dict[str, Callable[[Server, AnyPool], None]] = {
    "outage": have_an_outage,
    "rollback": return_in_a_transaction,
    "leak": hold_for_long,
    "lost": lose,
}


# Facts


def test_a_closed_pool_has_nothing_in_use(shared: Server) -> None:
    pool = ours(shared.conninfo, min_size=4)
    pool.open(wait=True, timeout=10)
    pool.close()
    stats = pool.get_stats()
    assert (stats["pool_size"], stats["pool_available"], pool.holders()) == (0, 0, [])


def test_a_fault_keeps_no_socket_alive(shared: Server) -> None:
    """The frames of its traceback refer to the connection on which `configure` failed."""

    def configure(conn: Any) -> None:
        conn.execute("SELECT nonsense")

    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        pool = ours(shared.conninfo, min_size=1, timeout=0.5, configure=configure)
        pool.open()
        with pytest.raises((psycopg.Error, PoolTimeout)):
            use(pool)
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "the sockets to close")
        pool.close()
    finally:
        gc.enable()
