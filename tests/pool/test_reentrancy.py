"""The pool is used in finalizers, in signal and log handlers, and by two threads at once."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from itertools import count
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest

from tests.support.bytecodes import paused
from tests.support.pools import APP, LATE, AnyPool, Call, opened, ours, sockets, uncollected, use
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


def test_a_leaked_connection_is_counted_although_its_address_is_used_again(shared: Server) -> None:
    held: list[Any] = []
    addresses: list[int] = []

    class Large(psycopg.Connection[Any]):
        """Of a size that few other objects have, so that the next one gets its memory."""

        __slots__ = tuple(f"slot{number}" for number in range(40))

        @classmethod
        def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
            addresses[:] = map(id, held)
            held.clear()  # the leak
            return super().connect(conninfo, **kwargs)

    # Where connecting takes long, two connections are opened, and one is overflow.
    options = {"min_size": 1, "max_size": 2, "max_idle": 0.5}
    with opened(ours, shared.conninfo, connection_class=Large, **options) as pool:
        reused = 0
        for number in range(1, 21):
            held.append(pool.getconn())
            other = Call(pool.getconn).result(within=LATE)
            reused += [id(other)] == addresses
            wait_until(lambda n=number: leaked(pool) == n, "the loss to be counted")  # type: ignore[misc]
            pool.putconn(other)
            wait_until(lambda: pool.get_stats()["pool_size"] == 1, "the slot to be free")
        # Without the GIL each thread has memory of its own, so an address may never come again.
        assert reused or not getattr(sys, "_is_gil_enabled", lambda: True)()


def leaked(pool: AnyPool) -> int:
    stats = pool.get_stats()
    return int(stats.get("connections_leaked", stats.get("connections_lost", 0)))


# Two threads


def test_returning_a_connection_twice_at_the_same_time_is_refused_once(shared: Server) -> None:
    """One thread returns it while another is at any bytecode of its own return."""
    with opened(ours, shared.conninfo, min_size=1, timeout=LATE) as pool:
        for at in count():
            conn = pool.getconn()

            def give_back(conn: Any = conn) -> bool:
                try:
                    pool.putconn(conn)
                except ValueError:
                    return False
                return True

            others: list[Call] = []

            def let_the_other_return(
                give_back: Callable[[], bool] = give_back, others: list[Call] = others
            ) -> None:
                others.append(Call(give_back))
                others[0].join(LATE)  # a pool with a lock would make it wait for us

            first = Call(paused, give_back, at, let_the_other_return).result(within=3 * LATE)
            if not others:
                break
            assert {first, others[0].result(within=LATE)} == {True, False}, f"at bytecode {at}"
            assert pool.get_stats()["pool_available"] == 1, f"at bytecode {at}"
            Call(use, pool).result(within=LATE)
        assert at > 50


# Signals


def test_a_signal_handler_may_use_the_pool_at_any_bytecode(shared: Server) -> None:
    """Python runs it between two bytecodes of the main thread. It may have to wait there until
    another thread returns a connection.
    """
    with opened(ours, shared.conninfo, min_size=2, timeout=LATE) as pool:
        for at in count():
            held = [pool.getconn()]
            handled: list[int] = []

            def handle(held: list[Any] = held, handled: list[int] = handled) -> None:
                other = Call(pool.putconn, held.pop())
                handled.append(use(pool, timeout=LATE))
                other.result(within=LATE)

            def checkout_and_return() -> None:
                pool.putconn(pool.getconn(timeout=LATE))
                pool.get_stats()

            Call(paused, checkout_and_return, at, handle).result(within=3 * LATE)
            if not handled:
                pool.putconn(held.pop())
                break
            stats = pool.get_stats()
            assert stats["pool_available"] == stats["pool_size"] == 2, f"at bytecode {at}"
        assert at > 100


def test_a_real_signal_handler_uses_the_pool(shared: Server) -> None:
    served: list[int] = []
    with opened(ours, shared.conninfo, min_size=2, max_size=3, timeout=LATE) as pool:
        before = signal.signal(signal.SIGUSR1, lambda *_: served.append(use(pool, timeout=LATE)))
        try:
            for _ in range(20):
                conn = pool.getconn()
                os.kill(os.getpid(), signal.SIGUSR1)
                pool.putconn(conn)
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert len(served) == 20


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
    wait_until(lambda: conn._pool_entry.reported, "housekeeping to see it")
    pool.putconn(conn)


def lose(_: Server, pool: AnyPool) -> None:
    pool.getconn()


def return_a_changed_session(_: Server, pool: AnyPool) -> None:
    conn = pool.getconn()
    conn._pool_entry.dirty = "changed"
    pool.putconn(conn)


def fail(_: object, dirty: object) -> bool:
    raise ValueError(f"no way to clean {dirty}")


@pytest.mark.parametrize(
    "case", [have_an_outage, return_in_a_transaction, hold_for_long, lose, return_a_changed_session]
)
def test_a_log_handler_may_use_the_pool_that_logs(
    server: Server, case: Callable[[Server, AnyPool], None]
) -> None:
    with opened(ours, server.conninfo, min_size=1, timeout=8, leak_seconds=0.4, clean=fail) as pool:
        handler = Querying(pool)
        loggers = [logging.getLogger(name) for name in ("abs_orm_app.pool", "psycopg.pool")]
        for each in loggers:
            each.addHandler(handler)
        try:
            case(server, pool)
            wait_until(lambda: bool(handler.kept or handler.errors), "the record")
            if (
                case is not have_an_outage
            ):  # the first record is about the outage, and cannot be stored
                assert not handler.errors
            assert handler.kept
            assert Call(use, pool).result(within=LATE)
        finally:
            for each in loggers:
                each.removeHandler(handler)


# Facts


def test_a_closed_pool_has_nothing_in_use(shared: Server) -> None:
    pool = ours(shared.conninfo, min_size=4)
    pool.open(wait=True, timeout=10)
    pool.close()
    stats = pool.get_stats()
    assert (stats["pool_size"], stats["pool_available"], pool.holders()) == (0, 0, [])


def test_a_fault_keeps_no_socket_open() -> None:
    """The frames of its traceback refer to the connection that was not made in time."""
    with socket.create_server(("127.0.0.1", 0)) as mute:  # it never answers
        port = mute.getsockname()[1]
        before = sockets()
        pool = ours(f"host=127.0.0.1 port={port} connect_timeout=2", min_size=1, timeout=LATE)
        with uncollected(), opened(lambda _: pool, "", filled=False):
            wait_until(lambda: not sockets() <= before, "an attempt")
            attempt = sockets() - before
            wait_until(lambda: failed(pool) >= 1, "an attempt to fail")
            wait_until(lambda: not attempt & sockets(), "its socket to be closed")


def failed(pool: AnyPool) -> int:
    return int(pool.get_stats().get("connections_errors", 0))
