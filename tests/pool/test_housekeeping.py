"""The housekeeping thread sleeps when nothing is due, and wakes when something is."""

from __future__ import annotations

import socket
from collections.abc import Callable
from time import monotonic, sleep

import pytest
from psycopg_pool import PoolClosed

from abs_orm_app.pool.housekeeping import housekeeping
from abs_orm_app.pool.upkeep import Upkeep
from tests.support.pools import LATE, AnyPool, Call, opened, ours, use
from tests.support.servers import Server, wait_until

FEW = 100  # looks in a second; a thread that does not sleep has thousands


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count how often the housekeeping thread looks after a pool."""
    count = 0

    tend = Upkeep.tend

    def counted(upkeep: Upkeep, now: float) -> float:
        nonlocal count
        count += 1
        return tend(upkeep, now)

    monkeypatch.setattr(Upkeep, "tend", counted)
    return lambda: count


def in_a_second(looks: Callable[[], int]) -> int:
    before = looks()
    sleep(1.0)
    return looks() - before


def test_it_sleeps_while_an_attempt_of_a_failed_refill_lasts(looks: Callable[[], int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # it never answers
        port = mute.getsockname()[1]
        conninfo = f"host=127.0.0.1 port={port} connect_timeout=4"
        with opened(ours, conninfo, filled=False, min_size=1) as pool:
            wait_until(lambda: pool.get_stats().get("connections_errors") == 1, "a failure")
            wait_until(lambda: pool.get_stats()["pool_opening"] == 1, "the next attempt")
            assert in_a_second(looks) < FEW


@pytest.mark.parametrize("option", ["max_idle", "leak_seconds"])
def test_it_sleeps_although_a_limit_is_zero(
    shared: Server, looks: Callable[[], int], option: str
) -> None:
    with opened(ours, shared.conninfo, min_size=0, max_size=1, **{option: 0}) as pool:
        conn = pool.getconn()
        assert in_a_second(looks) < FEW
        pool.putconn(conn)


def test_a_pool_that_is_closed_during_its_first_attempt_is_looked_at_no_more(
    looks: Callable[[], int],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        pool = ours(f"host=127.0.0.1 port={port} connect_timeout=4", min_size=0, max_size=1)
        pool.open()
        call = Call(use, pool)
        wait_until(lambda: pool.get_stats()["pool_opening"] == 1, "an attempt")
        pool.close(timeout=0.0)
        with pytest.raises(PoolClosed):
            call.result(within=LATE)
    wait_until(lambda: pool.core not in housekeeping.clients, "the pool to be forgotten")
    assert in_a_second(looks) < FEW


def test_a_pool_that_is_first_used_while_the_process_forks_is_looked_after(shared: Server) -> None:
    """Before a fork the thread is ended; the pool is opened by another thread at that moment."""
    wait_until(lambda: not housekeeping.is_running(), "the pools of other tests to be gone")
    pool = ours(shared.conninfo, min_size=1, timeout=20)
    housekeeping.pause(1.0)
    try:
        pool.open()
        call = Call(use, pool)
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 1, "the client to wait")
    finally:
        housekeeping.resume()
    try:
        call.result(within=LATE)
    finally:
        pool.close()


def test_who_waits_for_a_full_pool_has_attempts_as_often_as_any_other(server: Server) -> None:
    """A refill that nobody waits for is tried again less and less often."""
    pool: AnyPool = ours(server.conninfo, min_size=1)
    server.stop()
    waiting = Call(pool.open, True, 60)
    try:
        began = monotonic()
        wait_until(lambda: pool.get_stats().get("connections_errors", 0) >= 12, "attempts")
        assert monotonic() - began < 20
        server.start()
        waiting.result(within=LATE)
    finally:
        pool.close()
