"""Waiting clients and idle pools sleep; benchmarks/crowd.py measures what they cost."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from pathlib import Path
from time import monotonic, sleep

import pytest
from psycopg_pool import PoolTimeout

from abs_orm_app.pool import threads, waiting
from abs_orm_app.pool.core import Core
from abs_orm_app.pool.housekeeping import THREAD
from tests.support.pools import LATE, give_back, opened, ours
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.server({"max_connections": "120"})

CROWD = 600
TIMEOUT = 8.0
POOLS = 50


def wake_ups(native_ids: Iterable[int | None], seconds: float) -> int:
    """How often these threads wake up in `seconds`. Unlike their processor time, no other thread
    and no busy machine adds to it.
    """

    def count() -> int:
        status = [Path(f"/proc/self/task/{number}/status") for number in native_ids]
        return sum(
            int(re.findall(r"^voluntary_ctxt_.*?(\d+)$", path.read_text(), re.MULTILINE)[0])
            for path in status
        )

    before = count()
    sleep(seconds)
    return count() - before


def test_a_crowd_of_waiting_clients_sleeps_until_the_deadline(shared: Server) -> None:
    began: list[float] = []
    ended: list[float] = []

    def wait() -> None:
        began.append(monotonic())
        try:
            pool.getconn()
        except PoolTimeout:
            ended.append(monotonic())

    options = {"min_size": 30, "timeout": TIMEOUT, "leak_seconds": 60.0}
    with opened(ours, shared.conninfo, **options) as pool:
        held = [pool.getconn() for _ in range(30)]
        clients = [threading.Thread(target=wait, daemon=True) for _ in range(CROWD)]
        for thread in clients:
            thread.start()
        wait_until(lambda: len(pool.queue.waiters) == CROWD, "all to wait")

        woken = wake_ups([thread.native_id for thread in clients], 0.5)

        for thread in clients:
            thread.join(TIMEOUT + LATE)
        give_back(pool, held)
    assert woken < CROWD, "each that polls wakes up several times"
    assert len(ended) == CROWD
    assert max(ended) - max(began) <= TIMEOUT + LATE


def test_idle_pools_are_left_alone(shared: Server) -> None:
    pools = [ours(shared.conninfo, min_size=1) for _ in range(POOLS)]
    try:
        for pool in pools:
            pool.open(wait=True, timeout=20)
        sleep(0.5)
        keepers = threads.running(THREAD)

        assert len(keepers) == 1
        assert wake_ups([keeper.native_id for keeper in keepers], 2.0) < POOLS, (
            "it ticks once a second where somebody observes"
        )
    finally:
        for pool in pools:
            pool.close()


def test_a_crowd_that_times_out_shares_a_few_descriptions(
    shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each description takes system calls, after which its thread competes with all others."""
    described: list[Core] = []

    def describe(core: Core) -> str:
        described.append(core)
        return original(core)

    original = waiting._describe
    monkeypatch.setattr(waiting, "_describe", describe)
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
