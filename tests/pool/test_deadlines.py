"""A wait ends at its deadline, whoever else waits and whatever housekeeping does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

import pytest
from psycopg_pool import PoolTimeout

from abs_orm_app.pool.housekeeping import observers
from abs_orm_app.pool.queue import Queue, Waiter
from abs_orm_app.pool.waiting import AHEAD
from tests.support.pools import LATE, AnyPool, Call, opened, ours
from tests.support.servers import Server

TIMEOUTS = [2.0, 0.6, 1.5, 0.2, 2.5, 0.6, 1.0, 3.0, 0.6, 1.2, 0.3, 2.0]


@contextmanager
def exhausted(server: Server) -> Iterator[AnyPool]:
    with opened(ours, server.conninfo, min_size=1) as pool:
        conn = pool.getconn()
        try:
            yield pool
        finally:
            pool.putconn(conn)


def test_waits_of_different_lengths_end_each_at_its_deadline(shared: Server) -> None:
    """Who waits longest wakes the next, whose deadline may be later than that of others."""
    with exhausted(shared) as pool:
        calls = [(timeout, Call(pool.getconn, timeout)) for timeout in TIMEOUTS]
        for timeout, call in calls:
            with pytest.raises(PoolTimeout):
                call.result(within=timeout + LATE)
            assert call.seconds >= timeout


def test_the_next_to_wake_is_one_whose_deadline_is_near() -> None:
    """One whose deadline is far, in front of it, would not wake the others in time."""
    queue = Queue()
    far, first, second = (Waiter(0.0, deadline) for deadline in (1000.0, 1.0, 1.0))
    for waiter in (far, first, second):
        queue.join(waiter)
    first.lead()
    queue.leave(first)
    assert second.leads
    assert not far.leads


def test_a_wait_ends_although_the_housekeeping_thread_is_stuck(shared: Server) -> None:
    stuck, over = Event(), Event()

    def observe(_: AnyPool) -> None:
        stuck.set()
        over.wait(60)

    with exhausted(shared) as pool:
        observers.append(observe)
        try:
            assert stuck.wait(20)
            waits = [Call(pool.getconn, 2 * AHEAD) for _ in range(3)]
            for wait in waits:
                with pytest.raises(PoolTimeout):
                    wait.result(within=2 * AHEAD + LATE)
        finally:
            observers.remove(observe)
            over.set()
