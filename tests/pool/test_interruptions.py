"""An exception thrown into a thread at any bytecode does not affect other clients.

Time limits of Dramatiq and Celery, `gevent.Timeout` and Ctrl-C raise at any point. These tests
raise at each bytecode of the pool's code in turn.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import count
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest

from abs_orm_app.pool import pre_ping, threads
from abs_orm_app.pool.liveness import Answer, ping_steps
from abs_orm_app.pool.steps import Steps
from tests.support.bytecodes import POOL, STRIDE, Interrupted, interruption, paused, sweep, throw
from tests.support.pools import APP, AnyPool, Call, opened, ours, use
from tests.support.servers import Server, wait_until

SOON = 5.0  # seconds, on a busy machine; a client that is affected waits until its timeout
TIMEOUT = 8.0
SIZE = 2  # of the pool: one for the work, one for what happens meanwhile

pytestmark = pytest.mark.server(sql=["CREATE UNLOGGED TABLE rows (n int)"])


def interrupted(function: Callable[[], object], at: int) -> bool:
    """Run the function in a thread; False if it ended before that bytecode."""
    thrown = []

    def work() -> None:
        try:
            with interruption(at):
                function()
        except Interrupted:
            thrown.append(True)

    Call(work).result(within=TIMEOUT + 5)
    return bool(thrown)


@pytest.fixture(autouse=True)
def _no_noise(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")


def check_that_all_come_soon(pool: AnyPool, limit: int, at: int) -> None:
    began = monotonic()
    conns = [pool.getconn(timeout=TIMEOUT) for _ in range(limit)]
    assert monotonic() - began < SOON, f"another client waits after an exception at bytecode {at}"
    for conn in conns:
        pool.putconn(conn)
    stats = pool.get_stats()
    assert stats["pool_size"] <= limit, f"at bytecode {at}"
    assert stats["requests_waiting"] == 0, f"at bytecode {at}"


def checkout_and_return(pool: AnyPool) -> None:
    conn = pool.getconn(timeout=TIMEOUT)
    pool.putconn(conn)


def change_and_return(pool: AnyPool) -> None:
    """Such a connection is cleaned by another thread, which the return may have to start."""
    pool.cleaner.reset()  # its threads live on for a while
    conn = pool.getconn(timeout=TIMEOUT)
    conn._pool_entry.dirty = "changed"
    pool.putconn(conn)


def return_in_a_transaction(pool: AnyPool) -> None:
    conn = pool.getconn(timeout=TIMEOUT)
    conn.execute("BEGIN")
    pool.putconn(conn)


def insert_many(pool: AnyPool) -> None:
    with pool.connection(TIMEOUT) as conn, conn.cursor() as cursor:
        cursor.executemany("INSERT INTO rows VALUES (%s)", [[-1], [-1]])


def pipeline(pool: AnyPool) -> None:
    with pool.connection(TIMEOUT) as conn, conn.pipeline():
        conn.execute("INSERT INTO rows VALUES (-1)")
        conn.execute("INSERT INTO rows VALUES (-1)")


def iterate(pool: AnyPool) -> None:
    with pool.connection(TIMEOUT) as conn, conn.cursor("rows", withhold=True) as cursor:
        cursor.itersize = 2
        for _ in cursor.execute("SELECT generate_series(1, 5)"):
            pass


WORK = [
    checkout_and_return, change_and_return, return_in_a_transaction, insert_many, pipeline, iterate
]  # fmt: skip
ACTS: dict[str, Callable[[AnyPool], object]] = {
    "an exception": lambda _: throw(),
    "a query": lambda pool: use(pool, timeout=TIMEOUT),
    "a garbage collection": lambda _: gc.collect(0),  # of what `lose` has left
}


def lose(pool: AnyPool) -> None:
    """Leave a connection that only the garbage collector finds."""
    lost = [pool.getconn(timeout=TIMEOUT)]
    lost.append(lost)


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("what", ACTS)
@pytest.mark.parametrize("work", WORK)
def test_whatever_happens_at_a_bytecode_affects_no_other_request(
    shared: Server, work: Callable[[AnyPool], None], what: str
) -> None:
    def do() -> None:
        if what == "a garbage collection":
            lose(pool)
        work(pool)

    def check(at: int) -> None:
        gc.collect(0)  # the last time, nothing has happened
        check_that_all_come_soon(pool, SIZE, at)
        with pool.connection(TIMEOUT) as conn:
            conn.execute("INSERT INTO rows VALUES (%s)", [at])
        rows = other.execute("DELETE FROM rows RETURNING n").fetchall()
        assert (at,) in rows, f"a row is lost after bytecode {at}"
        assert rows.count((-1,)) in (0, 2), f"half of a batch is there after bytecode {at}"

    cleans = {"clean": lambda *_: True} if work is change_and_return else {}
    with (
        opened(ours, shared.conninfo, min_size=SIZE, timeout=TIMEOUT, **cleans) as pool,
        psycopg.connect(shared.conninfo, autocommit=True) as other,
    ):
        last = Call(sweep, do, lambda: ACTS[what](pool), POOL, check).result(within=600)
        assert last > 50
        wait_until(lambda: shared.sessions(APP) <= SIZE, "the lost sessions to end")


def test_an_exception_in_a_return_does_not_delay_the_waiting_client(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=TIMEOUT) as pool:
        for at in count():
            holding = [pool.getconn()]

            def give_back(holding: list[Any] = holding) -> None:
                pool.putconn(holding.pop())

            innocent = Call(use, pool)
            wait_until(
                lambda: pool.get_stats()["requests_waiting"] == 1, "the other client to wait"
            )
            began = monotonic()
            went_on = interrupted(give_back, at)
            innocent.result(within=TIMEOUT + 2)
            assert innocent.ended_at - began < SOON, f"it waits after bytecode {at}"
            if not went_on:
                break
        assert at > 30


def test_an_exception_in_a_wait_affects_no_other_request(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=TIMEOUT) as pool:
        for at in count(0, STRIDE):
            holding = [pool.getconn()]

            def checkout_and_return() -> None:
                conn = pool.getconn(timeout=TIMEOUT)
                pool.putconn(conn)

            victim = Call(interrupted, checkout_and_return, at)
            end = monotonic() + 0.05
            while victim.is_alive() and not pool.queue.waiters and monotonic() < end:
                sleep(0.001)
            pool.putconn(holding.pop())
            went_on = victim.result(within=TIMEOUT + 5)
            check_that_all_come_soon(pool, 1, at)
            if not went_on:
                break
        assert at > 100


def test_a_suspect_is_still_one_after_an_exception_in_its_checkout(
    shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinged: set[Any] = set()

    def seen_ping(conn: Any, timeout: float) -> Steps[Answer]:
        answer = yield from ping_steps(conn, timeout)
        pinged.add(conn._pool_entry)
        return answer

    monkeypatch.setattr(pre_ping, "ping_steps", seen_ping)
    with opened(ours, shared.conninfo, min_size=1, timeout=TIMEOUT) as pool:
        seen = 0
        held: list[Any] = []
        for at in count(0, STRIDE):
            pool.putconn(pool.getconn())
            suspects = set(pool.entries)
            pinged.clear()
            pool.placement.suspect_all()
            if not interrupted(lambda: held.append(pool.getconn()), at):
                break
            idle = suspects & {conn._pool_entry for conn in tuple(pool.idle)}
            assert all(entry.suspicion is not None for entry in idle - pinged), f"at bytecode {at}"
            seen += len(idle)
        pool.putconn(held.pop())
        assert seen > 20


def test_an_exception_in_the_first_use_of_a_pool_affects_no_other_request(shared: Server) -> None:
    """The first use starts threads."""
    gc.collect()
    for at in count(0, STRIDE):
        pool = ours(shared.conninfo, min_size=1, max_size=2, timeout=TIMEOUT)

        def first_use(pool: AnyPool = pool) -> None:
            pool.open()
            pool.putconn(pool.getconn(timeout=TIMEOUT))

        went_on = interrupted(first_use, at)
        try:
            pool.open()
            check_that_all_come_soon(pool, 2, at)
        finally:
            pool.close()
        if not went_on:
            break
    assert at > 100
    wait_until(lambda: not threads.running("-connector"), "the threads that connect to end")


def test_an_attempt_that_ends_while_it_is_given_up_loses_its_holder_nothing(shared: Server) -> None:
    at = 0
    while _ends_while_it_is_given_up(shared, at):
        at += STRIDE
    assert at > 10


def _ends_while_it_is_given_up(server: Server, at: int) -> bool:
    """True if it ended before it was given up."""
    goes_on = threading.Event()
    ended_first = False

    def configure(_: object) -> None:
        goes_on.wait(20)

    def end() -> None:
        nonlocal ended_first
        ended_first = attempt in pool.core.attempts
        goes_on.set()
        wait_until(lambda: not attempt.thread.alive or pool.idle, "the end of the attempt")

    with closing(ours(server.conninfo, min_size=1, timeout=30, configure=configure)) as pool:
        pool.open()
        wait_until(lambda: any(a.pgconn for a in list(pool.core.attempts)), "an attempt")
        (attempt,) = pool.core.attempts
        paused(lambda: pool.connector._give_up(attempt), at, end)
        use(pool)
        assert pool.statistics.stale == 0, f"bytecode {at}"
    return ended_first
