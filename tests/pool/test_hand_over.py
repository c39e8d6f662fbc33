"""A connection that goes from the thread that returns it to one that waits arrives once."""

from __future__ import annotations

import logging
from itertools import count
from threading import Barrier, Event
from time import monotonic, sleep
from typing import Any

import pytest
from psycopg_pool import PoolTimeout

from abs_orm_app.facts.snapshot import snapshot
from tests.support.bytecodes import paused
from tests.support.hurry import hurried
from tests.support.pools import LATE, AnyPool, Call, opened, ours
from tests.support.servers import Server, wait_until

SOON = 0.03  # seconds in which a waiter that was served has used and returned its connection


def check_that_nothing_was_lost(
    pool: AnyPool, size: int, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """None was closed, none is in use, and no leak was reported."""
    wait_until(lambda: pool.get_stats()["pool_available"] == size, f"all to be back {when}", LATE)
    stats = pool.get_stats()
    assert stats["connections_num"] == stats["pool_size"] == size, when
    assert stats.get("connections_leaked", 0) == 0, when
    assert pool.holders() == [], when
    assert caplog.messages == [], when


def test_who_was_served_may_use_its_connection_again_before_the_return_that_served_it_ends(
    shared: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The returning thread pauses at each bytecode in turn. The one that waited for the connection
    uses it, returns it, and does that once more.
    """
    caplog.set_level(logging.WARNING, "abs_orm_app.pool")
    served_twice = 0
    with opened(ours, shared.conninfo, min_size=1, timeout=LATE) as pool:
        for at in count():
            held = [pool.getconn()]
            other = Call(use_twice, pool)
            wait_until(lambda: pool.get_stats()["requests_waiting"] == 1, "the other to wait")
            reached: list[bool] = []

            def let_the_other_go_on(other: Call = other, reached: list[bool] = reached) -> None:
                other.join(SOON)  # in vain, before the connection was given to it
                reached.append(not other.is_alive())

            def give_back(held: list[Any] = held) -> None:
                pool.putconn(held.pop())

            Call(paused, give_back, at, let_the_other_go_on).result(within=2 * LATE)
            other.join(2 * LATE)
            assert other.error is None, f"at bytecode {at}: {other.error}"
            check_that_nothing_was_lost(pool, 1, caplog, f"at bytecode {at}")
            served_twice += reached == [True]
            if not reached:
                break
        assert at > 50
        assert served_twice > 5, "it never went on before the return had ended"


def use_twice(pool: AnyPool) -> None:
    for _ in range(2):
        with pool.connection(timeout=LATE) as conn:
            conn.execute("SELECT 1")


@pytest.mark.parametrize("together", [True, False], ids=["with_waiters", "with_waits_given_up"])
def test_no_connection_is_lost_while_threads_switch_at_every_step(
    shared: Server, caplog: pytest.LogCaptureFixture, together: bool
) -> None:
    caplog.set_level(logging.WARNING, "abs_orm_app.pool")
    start, over = Barrier(12), Event()

    def look(pool: AnyPool) -> int:
        looks = 0
        while not over.is_set():
            assert pool.get_stats()["pool_size"] <= 3
            assert snapshot(pool).connections <= 3
            assert len(pool.holders()) <= 3
            looks += 1
        return looks

    def work(pool: AnyPool, number: int) -> int:
        start.wait(20)
        served, until = 0, monotonic() + 3
        while monotonic() < until:
            try:
                conn = pool.getconn(timeout=20 if together else 0.0002 * (number + 1))
            except PoolTimeout:
                continue
            if number % 3 == 0:
                conn.execute("SELECT 1")
            pool.putconn(conn)
            del conn
            served += 1
        return served

    with opened(ours, shared.conninfo, min_size=3, timeout=20) as pool:
        with hurried():
            looking = Call(look, pool)
            calls = [Call(work, pool, number) for number in range(12)]
            served = [call.result(within=3 + 20 + LATE) for call in calls]
            over.set()
            assert looking.result(within=LATE) > 10
        assert all(served)
        sleep(0.1)  # time for housekeeping to say what it has found
        check_that_nothing_was_lost(pool, 3, caplog, "at the end")
