"""The snapshot that all metrics are made from, and the observers that a pool calls."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections
from psycopg_pool import PoolTimeout

from abs_orm_app.facts.active import snapshots
from abs_orm_app.facts.snapshot import Snapshot, snapshot
from abs_orm_app.pool import housekeeping as housekeeping_module
from abs_orm_app.pool import threads
from abs_orm_app.pool.housekeeping import observers
from abs_orm_app.pool.pool import HardenedPool
from tests.support.pools import Call, give_back, opened, ours
from tests.support.projects import OURS, STOCK, database, entry
from tests.support.servers import Server, wait_until

SMALL = {"pool": {"min_size": 1, "max_size": 3, "timeout": 5.0}}


@contextmanager
def small_pool(server: Server, limit: int = 3) -> Iterator[HardenedPool]:
    with opened(ours, server.conninfo, min_size=1, max_size=limit, timeout=5.0) as pool:
        assert isinstance(pool, HardenedPool)
        yield pool


def open_pool(alias: str) -> Any:
    wrapper: Any = connections[alias]
    wrapper.pool.open()
    return wrapper.pool


@contextmanager
def observed_by(observer: Callable[[HardenedPool], None]) -> Iterator[None]:
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)


def test_a_snapshot_counts_idle_used_and_overflow_connections(server: Server) -> None:
    # With a higher limit, a third one may be opened where connecting takes long.
    with small_pool(server, limit=2) as pool:
        taken = [pool.getconn(), pool.getconn()]
        # Who hands a connection over takes its waiter from the queue a moment later.
        wait_until(lambda: snapshot(pool).waiting == 0, "the queue to be empty")
        now = snapshot(pool)
        assert (now.size, now.limit) == (1, 2)
        assert (now.in_use, now.idle, now.opening, now.waiting) == (2, 0, 0, 0)
        assert (now.connections, now.overflow) == (2, 1)
        give_back(pool, taken)
        now = snapshot(pool)
        assert (now.in_use, now.idle) == (0, 2)
        assert (now.checkouts, now.uses.count) == (2, 2)


def test_a_snapshot_counts_waiting_clients_and_timeouts(server: Server) -> None:
    with small_pool(server) as pool:
        taken = [pool.getconn() for _ in range(3)]
        waiting = Call(pool.getconn)
        wait_until(lambda: snapshot(pool).waiting == 1, "the client to wait")
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.05)
        pool.putconn(taken.pop())
        taken.append(waiting.result(20))
        now = snapshot(pool)
        assert (now.waiting, now.timeouts, now.errors) == (0, 1, 1)
        assert now.waits.count == now.queued
        assert now.waits.total >= 0.05
        give_back(pool, taken)


def test_a_connection_being_opened_is_neither_idle_nor_in_use(server: Server) -> None:
    with small_pool(server) as pool:
        conn = pool.getconn()
        server.suspend()
        waiting = Call(pool.getconn)
        wait_until(lambda: snapshot(pool).opening > 0, "a connection to be opened")
        now = snapshot(pool)
        assert (now.in_use, now.idle, now.waiting) == (1, 0, 1)
        server.resume()
        pool.putconn(waiting.result(10))
        pool.putconn(conn)


def test_a_snapshot_counts_failures(server: Server) -> None:
    with small_pool(server) as pool:
        server.restart("immediate")
        with pool.connection() as conn:
            conn.execute("select 1")
            conn.close()
        server.stop()
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.3)
        wait_until(lambda: snapshot(pool).connect_errors > 0, "an attempt to fail")
        now = snapshot(pool)
        assert now.stale + now.leaked >= 1
        assert now.returned_broken == 1
        assert now.connect_errors < now.connects


def test_a_counter_never_begins_anew_whoever_pops_the_statistics(server: Server) -> None:
    with small_pool(server) as pool:
        for _ in range(2):
            with pool.connection():
                pass
        before = snapshot(pool)
        assert (pool.pop_stats()["requests_num"], pool.get_stats().get("requests_num")) == (2, None)
        assert snapshot(pool).checkouts == before.checkouts == 2


def test_snapshots_are_taken_of_each_alias_whose_pool_was_used(server: Server) -> None:
    with (
        database(entry(server.conninfo, OPTIONS=SMALL), alias="used"),
        database(entry(server.conninfo, OPTIONS=SMALL), alias="unused"),
        database(entry(server.conninfo, STOCK, OPTIONS=SMALL), alias="stock"),
        database(entry(server.conninfo), alias="without pool"),
    ):
        assert [now.alias for now in snapshots()] == []
        for alias in ("used", "stock"):
            open_pool(alias).wait()
        assert [(now.alias, now.idle >= 1) for now in snapshots()] == [("used", True)]


def test_a_snapshot_contains_no_secret(server: Server) -> None:
    secret = {"PASSWORD": "do-not-tell", "OPTIONS": SMALL}
    with database(entry(server.conninfo, OURS, **secret)) as alias:
        open_pool(alias).wait()
        (now,) = snapshots()
        assert "do-not-tell" not in repr(now)
        assert server.conninfo not in repr(now)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping_module, "TICK", 0.1)


def test_observers_are_called_regularly_and_once_when_the_pool_closes(
    server: Server, quick: None
) -> None:
    told: list[tuple[Any, bool, int]] = []

    def observer(pool: HardenedPool) -> None:
        told.append((pool, pool.closed, threading.get_ident()))

    with observed_by(observer), small_pool(server) as pool:
        wait_until(lambda: len(told) >= 2, "two ticks")
        assert {(who, closed) for who, closed, _ in told} == {(pool, False)}
        (thread,) = threads.running(housekeeping_module.THREAD)
        assert {ident for *_, ident in told} == {thread.ident}
        pool.close()
        assert told[-1][:2] == (pool, True)
        ended = len(told)
        time.sleep(0.3)
        assert len(told) == ended


def test_an_observer_that_fails_disturbs_neither_the_pool_nor_other_observers(
    server: Server, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: HardenedPool) -> None:
        raise OSError("disk full")

    told: list[Snapshot] = []
    with (
        caplog.at_level(logging.ERROR, "abs_orm_app.pool"),
        observed_by(broken),
        observed_by(lambda pool: told.append(snapshot(pool))),
        small_pool(server) as pool,
    ):
        wait_until(lambda: len(told) >= 2, "two ticks")
        with pool.connection() as conn:
            conn.execute("select 1")
    assert "the pool keeps working" in caplog.text
