"""A garbage collection stops the process, so it does not start where it may miss a deadline."""

from __future__ import annotations

import gc
from time import monotonic
from typing import Any

from abs_orm_app.pool.leaks import Collector
from tests.support.pools import AnyPool, Call, give_back, opened, ours
from tests.support.servers import Server

MANY = 25  # Python reuses the memory of shorter tuples, and then collects nothing


def test_the_first_collection_is_estimated_from_the_memory() -> None:
    collector = Collector()
    assert collector.estimate() > 0.01, "a process with Django has 30 MB and more"
    assert not collector.fits(before=monotonic() + collector.estimate() / 2)
    assert collector.fits(before=monotonic() + 2 * collector.estimate())


def test_the_estimate_follows_the_last_collection() -> None:
    collector = Collector()
    collector.collect()
    assert 0 < collector.estimate() < 60


class Forgetful:
    """Returns its connection when it is garbage-collected, as a generator's `finally` does."""

    def __init__(self, pool: AnyPool, conn: Any) -> None:
        self.pool, self.conn = pool, conn
        self.cycle = self

    def __del__(self) -> None:
        self.pool.putconn(self.conn)


def test_a_finalizer_may_return_a_connection_while_the_pool_is_looked_at(shared: Server) -> None:
    before = gc.get_threshold()
    with opened(ours, shared.conninfo, min_size=MANY) as pool:
        held = [pool.getconn() for _ in range(MANY)]
        try:
            for allocations in 3 * [*range(10)]:
                gc.collect(1)
                Forgetful(pool, held.pop())
                gc.set_threshold(gc.get_count()[0] + allocations)
                pool.holders()
                gc.set_threshold(*before)
                gc.collect(1)
                held.append(pool.getconn())
        finally:
            gc.set_threshold(*before)
            give_back(pool, held)


def test_a_connection_comes_back_that_was_no_garbage_yet_when_its_thread_had_just_ended(
    shared: Server,
) -> None:
    """A thread counts as ended a moment before it drops its frames, and what they refer to."""
    frames: list[Any] = []

    def drop_frames(phase: str, _: object) -> None:
        if phase == "stop":
            frames.clear()

    with opened(ours, shared.conninfo, min_size=1, max_size=1, timeout=20) as pool:

        def take() -> None:
            cycle: list[Any] = [pool.getconn()]
            cycle.append(cycle)
            frames.append(cycle)

        gc.disable()
        gc.callbacks.append(drop_frames)
        try:
            Call(take).result(within=20)
            pool.putconn(pool.getconn())
        finally:
            gc.callbacks.remove(drop_frames)
            gc.enable()
