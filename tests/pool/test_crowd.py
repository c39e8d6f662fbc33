"""The cost of many waiting clients, and of idle pools."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic, process_time, sleep
from typing import TypeVar

import pytest
from psycopg_pool import ConnectionPool, PoolTimeout

from abs_orm_app.pool import errors
from abs_orm_app.pool.pool import HardenedPool
from tests.support.pools import AnyPool, MakePool, opened, ours
from tests.support.servers import Server

pytestmark = pytest.mark.server({"max_connections": "120"})

CROWD = 600
TIMEOUT = 4.0
T = TypeVar("T")


def plain(conninfo: str, **options: object) -> AnyPool:
    """A pool of psycopg_pool, without checks."""
    options.pop("leak_seconds", None)
    return ConnectionPool(conninfo, open=False, **options)  # type: ignore[arg-type]


def wait_in_a_crowd(pool: AnyPool) -> tuple[float, float]:
    """Seconds from the deadline to the last error; share of a core used while all wait."""
    ends: list[float] = []
    began: list[float] = []

    def wait() -> None:
        began.append(monotonic())
        try:
            pool.getconn()
        except PoolTimeout:
            ends.append(monotonic())

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(CROWD)]
    for thread in threads:
        thread.start()
    while len(began) < CROWD:
        sleep(0.01)
    sleep(1.5)  # by then the pool has collected garbage, which it does once in 30 s
    before, since = process_time(), monotonic()
    sleep(1.0)
    used = (process_time() - before) / (monotonic() - since)
    for thread in threads:
        thread.join(TIMEOUT + 10)
    assert len(ends) == CROWD
    return max(ends) - max(began) - TIMEOUT, used


def in_a_crowd(make: MakePool, server: Server) -> tuple[float, float]:
    with opened(make, server.conninfo, min_size=30, timeout=TIMEOUT, leak_seconds=60.0) as pool:
        held = [pool.getconn() for _ in range(30)]
        try:
            return wait_in_a_crowd(pool)
        finally:
            for conn in held:
                pool.putconn(conn)


def best_of_three(measure: Callable[[], T], good: Callable[[T], bool]) -> T:
    """Measure until the result is good, at most three times: a busy machine only makes it worse."""
    for _ in range(2):
        if good(result := measure()):
            return result
    return measure()


def test_a_crowd_of_waiting_clients_times_out_in_time_and_uses_no_cpu(shared: Server) -> None:
    def measure() -> tuple[float, float]:
        theirs, _ = in_a_crowd(plain, shared)
        late, used = in_a_crowd(ours, shared)
        return late - theirs, used

    best = best_of_three(measure, lambda seen: seen[0] <= 0.6 and seen[1] <= 0.05)
    assert best[0] <= 0.6, "seconds later than psycopg_pool's"
    assert best[1] <= 0.05, "of a core; the target of the benchmark is 0.02"


def test_idle_pools_use_no_cpu(shared: Server) -> None:
    def measure() -> float:
        before, since = process_time(), monotonic()
        sleep(3.0)
        return (process_time() - before) / (monotonic() - since)

    without = measure()  # threads that other tests have left
    pools = [ours(shared.conninfo, min_size=1) for _ in range(50)]
    try:
        for pool in pools:
            pool.open(wait=True, timeout=20)
        sleep(0.5)

        used = best_of_three(lambda: measure() - without, lambda used: used <= 0.001)
        assert used <= 0.001, "1 ms a second; the target of the benchmark is 0.5"
    finally:
        for pool in pools:
            pool.close()


def test_a_crowd_that_times_out_shares_a_few_descriptions(
    shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each description takes system calls, after which its thread competes with all others."""
    described: list[float] = []

    def describe(pool: HardenedPool, waited: float) -> str:
        described.append(waited)
        return original(pool, waited)

    original = errors._describe
    monkeypatch.setattr(errors, "_describe", describe)
    told: list[str] = []

    def wait() -> None:
        try:
            pool.getconn()
        except PoolTimeout as error:
            told.append(str(error))

    with opened(ours, shared.tcp_conninfo, min_size=30, timeout=2.0, leak_seconds=60.0) as pool:
        held = [pool.getconn() for _ in range(30)]
        for conn in held:  # the server is asked about each
            conn.pgconn.send_query(b"SELECT pg_sleep(10)")
        threads = [threading.Thread(target=wait, daemon=True) for _ in range(CROWD)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        for conn in held:
            conn.close()
            pool.putconn(conn)
    assert len(told) == CROWD
    assert len(described) <= CROWD / 2, "without sharing, one each"
    assert all("30 in use" in text and ", taken at " in text for text in told)
