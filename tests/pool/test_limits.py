"""Never more than size + overflow; growth in parallel; overflow that goes again; fair queues."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic, sleep

import pytest
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from tests.support.pools import (
    APP,
    AnyPool,
    Call,
    MakePool,
    compared_with_stock,
    opened,
    ours,
    pid,
    use,
)
from tests.support.proxy import Proxy
from tests.support.servers import Server, wait_until


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with Server() as server:
        yield server


def test_the_server_never_counts_more_than_size_and_overflow(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=5, max_size=8, max_lifetime=0.3) as pool:
        calls = [Call(_work, pool, 20) for _ in range(40)]
        most = before = 0
        with shared.admin() as admin:
            while any(call.is_alive() for call in calls):
                counted = admin.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [APP]
                ).fetchone()
                now = counted[0] if counted else 0
                # Twice in a row: a backend whose client has left takes a moment to end.
                most = max(most, min(before, now))
                before = now
                sleep(0.01)
        for call in calls:
            call.result(within=1)
        assert most <= 8


def _work(pool: AnyPool, times: int) -> None:
    for _ in range(times):
        use(pool, "SELECT pg_sleep(0.002)")


@compared_with_stock("it grows by one connection at a time")
def test_a_burst_opens_connections_in_parallel(shared: Server, make: MakePool) -> None:
    with (
        Proxy(shared.port, delay=0.1) as proxy,
        opened(
            make, f"{shared.tcp_conninfo} port={proxy.port}", min_size=0, max_size=8, timeout=30
        ) as pool,
    ):
        alone = Call(pool.getconn)
        conns = [alone.result(within=10)]
        calls = [Call(pool.getconn) for _ in range(7)]
        conns += [call.result(within=20) for call in calls]
        for conn in conns:
            pool.putconn(conn)
        assert max(call.seconds for call in calls) < 3 * alone.seconds


def test_overflow_that_is_not_needed_is_closed(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=2, max_size=6, max_idle=0.5) as pool:
        conns = [pool.getconn() for _ in range(6)]
        assert shared.sessions(APP) == 6
        for conn in conns:
            pool.putconn(conn)
        wait_until(lambda: shared.sessions(APP) == 2, "the overflow to be closed", seconds=5)
        assert pool.get_stats()["pool_size"] == 2


def test_overflow_that_is_needed_again_and_again_stays(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, max_size=3, max_idle=0.5) as pool:
        opened_first: set[int] = set()
        end = monotonic() + 2
        while monotonic() < end:
            conns = [pool.getconn() for _ in range(3)]
            opened_first = opened_first or {pid(conn) for conn in conns}
            assert {pid(conn) for conn in conns} == opened_first
            for conn in conns:
                pool.putconn(conn)
            sleep(0.01)


def test_clients_are_served_in_the_order_in_which_they_came(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1) as pool:
        held = pool.getconn()
        calls = []
        for number in range(5):
            calls.append(Call(use, pool))
            wait_until(
                lambda number=number: pool.get_stats()["requests_waiting"] == number + 1,  # type: ignore[misc]
                "the client to be in the queue",
            )
        pool.putconn(held)
        for call in calls:
            call.result(within=5)
        ends = [call.ended_at for call in calls]
        assert ends == sorted(ends)


def test_two_clients_never_have_the_same_connection(shared: Server) -> None:
    in_hand: set[int] = set()
    lock = threading.Lock()

    def work(pool: AnyPool) -> None:
        for _ in range(200):
            conn = pool.getconn()
            with lock:
                assert id(conn) not in in_hand
                in_hand.add(id(conn))
            with lock:
                in_hand.remove(id(conn))
            pool.putconn(conn)

    with opened(ours, shared.conninfo, min_size=3) as pool:
        for call in [Call(work, pool) for _ in range(12)]:
            call.result(within=30)
        assert pool.get_stats()["pool_available"] == 3


def test_resize_grows_at_once_and_shrinks_as_connections_come_back(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=2, max_size=4) as pool:
        conns = [pool.getconn() for _ in range(4)]
        pool.resize(6, 6)
        wait_until(lambda: pool.get_stats()["pool_available"] == 2, "the pool to grow")
        pool.resize(1, 2)
        for conn in conns:
            pool.putconn(conn)
        wait_until(lambda: shared.sessions(APP) == 2, "the pool to shrink")
        assert pool.get_stats()["pool_size"] == 2


def test_drain_replaces_idle_connections_now_and_used_ones_when_they_return(
    shared: Server,
) -> None:
    with opened(ours, shared.conninfo, min_size=2) as pool:
        used = pool.getconn()
        old = {pid(conn) for conn in [used, *pool._idle]}
        pool.drain()
        pool.putconn(used)
        wait_until(lambda: pool.get_stats()["pool_available"] == 2, "the new connections")
        assert not old & {pid(conn) for conn in pool._idle}


def test_check_replaces_the_idle_connections_that_are_dead(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=3) as pool:
        shared.terminate(APP)
        pool.check()
        wait_until(lambda: pool.get_stats()["pool_available"] == 3, "the new connections")
        assert pool.get_stats()["connections_lost"] == 3


def test_max_waiting_refuses_who_comes_too_late(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, max_waiting=1, timeout=5) as pool:
        held = pool.getconn()
        waiting = Call(use, pool)
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 1, "the first to wait")
        with pytest.raises(TooManyRequests, match="1 requests waiting"):
            pool.getconn()
        pool.putconn(held)
        waiting.result(within=5)


def test_close_ends_the_waiting_and_closes_what_comes_back(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=20) as pool:
        held = pool.getconn()
        waiting = Call(use, pool)
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 1, "the client to wait")
        pool.close()
        with pytest.raises(PoolClosed):
            waiting.result(within=2)
        pool.putconn(held)
        assert held.closed
        with pytest.raises(PoolClosed):
            pool.getconn()


def test_a_connection_of_another_pool_or_returned_twice_is_refused(shared: Server) -> None:
    with (
        opened(ours, shared.conninfo, min_size=1) as pool,
        opened(ours, shared.conninfo, min_size=1) as other,
    ):
        conn = pool.getconn()
        with pytest.raises(ValueError, match="it comes from pool"):
            other.putconn(conn)
        pool.putconn(conn)
        with pytest.raises(ValueError, match="doesn't come from any pool"):
            pool.putconn(conn)
        assert pool.get_stats()["pool_available"] == 1


def test_a_connection_returned_in_a_transaction_is_rolled_back(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1) as pool:
        conn = pool.getconn()
        conn.autocommit = False
        conn.execute("SELECT 1")
        backend = pid(conn)
        pool.putconn(conn)
        with pool.connection() as again:
            assert pid(again) == backend
            assert again.info.transaction_status.name == "IDLE"


def test_a_connection_returned_broken_is_replaced(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1) as pool:
        conn = pool.getconn()
        conn.close()
        pool.putconn(conn)
        assert use(pool)
        assert pool.get_stats()["returns_bad"] == 1


def test_a_timeout_of_zero_takes_what_is_idle_and_does_not_wait(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1) as pool:
        conn = pool.getconn(timeout=0)
        began = monotonic()
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        assert monotonic() - began < 0.5
        pool.putconn(conn)


def test_a_timeout_of_zero_does_no_harm_to_connections_that_are_due_for_a_ping(
    shared: Server,
) -> None:
    with opened(ours, shared.conninfo, min_size=4) as pool:
        sleep(0.7)
        pool.putconn(pool.getconn(timeout=0))
        assert pool.get_stats().get("connections_lost", 0) == 0


def test_a_pool_with_a_tiny_timeout_finds_lost_connections_too(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=0.1) as pool:

        def lose() -> None:
            cycle = [pool.getconn()]
            cycle.append(cycle)

        gc.disable()
        try:
            Call(lose).result(within=5)
            wait_until(lambda: _serves(pool), "the connection to be found", seconds=5)
        finally:
            gc.enable()


def _serves(pool: AnyPool) -> bool:
    with suppress(PoolTimeout):
        return bool(use(pool))
    return False


def test_usage_is_counted_in_milliseconds(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1) as pool:
        use(pool, "SELECT pg_sleep(0.1)")
        assert 100 <= pool.get_stats()["usage_ms"] < 1000
        assert pool.pop_stats()["usage_ms"] >= 100
        assert pool.get_stats()["usage_ms"] == 0
