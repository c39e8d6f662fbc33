"""What another thread does between two steps of the pool changes no promise."""

from __future__ import annotations

import threading
from functools import partial
from itertools import count
from time import sleep

import psycopg
import pytest
from psycopg_pool import TooManyRequests

from abs_orm_app.pool import registry
from tests.support.bytecodes import paused
from tests.support.hurry import hurried
from tests.support.pools import LATE, AnyPool, Call, opened, ours
from tests.support.servers import Server, wait_until


@hurried()
def test_pools_are_listed_while_others_are_made(shared: Server) -> None:
    """A fork in one thread lists the pools while another thread makes its first."""
    over = threading.Event()

    def make() -> None:
        while not over.is_set():
            made = [ours(shared.conninfo) for _ in range(50)]
            del made

    makers = [Call(make) for _ in range(2)]
    try:
        for _ in range(2000):
            registry._every_pool()
    finally:
        over.set()
        for maker in makers:
            maker.result(within=LATE)


def test_never_more_than_max_waiting_requests_wait(shared: Server) -> None:
    """Another one comes at any bytecode of the first."""

    def come() -> bool:
        try:
            pool.putconn(pool.getconn(timeout=LATE))
        except TooManyRequests:
            return False
        return True

    def let_another_come(others: list[Call]) -> None:
        others.append(Call(come))
        wait_until(lambda: waiting(pool) == 1 or not others[0].is_alive(), "it to wait, or not")

    with opened(ours, shared.conninfo, min_size=1, max_waiting=1, timeout=20) as pool:
        for at in count():
            held = [pool.getconn()]
            others: list[Call] = []
            first = Call(paused, come, at, partial(let_another_come, others))
            wait_until(partial(one_waits, pool, first, others), "one to wait, the other to leave")
            pool.putconn(held.pop())
            first.result(within=2 * LATE)
            if not others:
                break
            others[0].result(within=2 * LATE)
        assert at > 50


def one_waits(pool: AnyPool, first: Call, others: list[Call]) -> bool:
    both_wait = bool(others) and first.is_alive() and others[0].is_alive()
    return waiting(pool) == 1 and not both_wait


def waiting(pool: AnyPool) -> int:
    return int(pool.get_stats()["requests_waiting"])


def test_who_waits_for_a_full_pool_learns_that_it_is_closed(shared: Server) -> None:
    """It is closed at any bytecode of `wait`."""
    for at in count():
        pool = ours(shared.conninfo, min_size=1, kwargs={"options": "-c nonsense=1"})
        pool.open()
        closed: list[bool] = []

        def close(pool: AnyPool = pool, closed: list[bool] = closed) -> None:
            pool.close()
            closed.append(True)

        waits = Call(paused, partial(pool.wait, 60), at, close)
        with pytest.raises(psycopg.OperationalError):  # PoolClosed, or what is wrong with the pool
            waits.result(within=2 * LATE)
        pool.close()
        if not closed:
            break
    assert at > 20


def test_who_looks_at_a_connection_too_late_costs_its_next_holder_nothing(shared: Server) -> None:
    """A thread that shares its wrapper looks whether the server has sent anything, while another
    one closes it. A poller cannot be asked by two threads at a time.
    """
    with opened(ours, shared.conninfo, min_size=1, max_size=1, timeout=20) as pool:
        conn = pool.getconn()
        looks = Call(conn._pool_entry.poll, 500)
        wait_until(lambda: looks.ident is not None, "the other thread")
        sleep(0.1)
        pool.putconn(conn)
        with pool.connection() as next_one:
            assert next_one is conn
            next_one.execute("SELECT 1")
        looks.result(within=LATE)
