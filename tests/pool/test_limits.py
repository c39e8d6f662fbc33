"""The limit of size + overflow, growth in parallel, closing of overflow, fair queues."""

from __future__ import annotations

import threading
from contextlib import suppress
from time import monotonic, sleep

import pytest
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from abs_orm_app.pool.growth import RETRY_INTERVAL
from tests.support.pools import (
    APP,
    LATE,
    AnyPool,
    Call,
    MakePool,
    compared_with_stock,
    give_back,
    open_sockets,
    opened,
    ours,
    pid,
    uncollected,
    use,
)
from tests.support.proxy import Proxy
from tests.support.servers import Server, wait_until


def test_a_pool_never_has_more_connections_than_size_and_overflow(shared: Server) -> None:
    with opened(ours, shared.tcp_conninfo, min_size=5, max_size=8, max_lifetime=0.3) as pool:
        calls = [Call(_work, pool, 20) for _ in range(40)]
        most = 0
        while any(call.is_alive() for call in calls):
            most = max(most, open_sockets(shared))
        for call in calls:
            call.result(within=1)
        assert 5 <= most <= 8
        wait_until(lambda: shared.sessions(APP) <= 8, "the replaced sessions to end")


def test_connections_that_are_being_opened_count_when_the_limit_is_lowered(server: Server) -> None:
    slow = threading.Event()
    slow.set()

    def wait(_: object) -> None:
        while slow.is_set():
            sleep(0.01)

    options = {"min_size": 1, "max_size": 6, "timeout": 20, "configure": wait}
    with opened(ours, server.conninfo, filled=False, **options) as pool:
        calls = [Call(use, pool) for _ in range(6)]
        wait_until(lambda: pool.get_stats()["pool_opening"] > 2, "the pool to open connections")
        pool.resize(1, 1)
        slow.clear()
        for call in calls:
            call.result(within=20)
        wait_until(lambda: server.sessions(APP) == 1, "what is beyond the limit to be closed")


def _work(pool: AnyPool, times: int) -> None:
    for _ in range(times):
        use(pool, "SELECT pg_sleep(0.002)")


@compared_with_stock("it grows by one connection at a time")
def test_a_burst_opens_connections_in_parallel(shared: Server, make: MakePool) -> None:
    with (
        Proxy(shared.port) as proxy,
        opened(
            make, f"{shared.tcp_conninfo} port={proxy.port}", min_size=0, max_size=8, timeout=30
        ) as pool,
    ):
        conns = [pool.getconn()]
        proxy.blackhole()
        calls = [Call(pool.getconn) for _ in range(7)]
        wait_until(lambda: proxy.connections == 8, "seven connects at the same time", LATE)
        proxy.resume()
        conns += [call.result(within=20) for call in calls]
        give_back(pool, conns)


def test_a_burst_of_slow_requests_after_quick_ones_waits_for_no_interval(shared: Server) -> None:
    options = {"min_size": 1, "max_size": 31, "num_workers": 1}
    with opened(ours, shared.conninfo, **options) as pool:
        for _ in range(1000):
            use(pool)
        calls = [Call(pool.getconn) for _ in range(31)]
        conns = [call.result(within=20) for call in calls]
        assert max(call.seconds for call in calls) < 30 * RETRY_INTERVAL / 2
        give_back(pool, conns)


def test_overflow_that_is_not_needed_is_closed(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=2, max_size=6, max_idle=0.5) as pool:
        conns = [pool.getconn() for _ in range(6)]
        assert shared.sessions(APP) == 6
        give_back(pool, conns)
        wait_until(lambda: shared.sessions(APP) == 2, "the overflow to be closed")
        assert pool.get_stats()["pool_size"] == 2


def test_overflow_that_is_used_again_and_again_stays_open(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, max_size=3, max_idle=2) as pool:
        before: set[int] = set()
        used_at = began = monotonic()
        while monotonic() - began < 4:
            conns = [pool.getconn() for _ in range(3)]
            now = {pid(conn) for conn in conns}
            paused = monotonic() - used_at > 1  # on a busy machine: they may have been closed
            assert paused or not before or now == before
            before = now
            give_back(pool, conns)
            used_at = monotonic()
            sleep(0.01)


def test_clients_are_served_in_the_order_in_which_they_came(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1) as pool:
        held = pool.getconn()
        calls, served = [], []

        def work(number: int) -> None:
            with pool.connection():
                served.append(number)

        for number in range(5):
            calls.append(Call(work, number))
            wait_until(
                lambda number=number: pool.get_stats()["requests_waiting"] == number + 1,  # type: ignore[misc]
                "the client to be in the queue",
            )
        pool.putconn(held)
        for call in calls:
            call.result(within=LATE)
        assert served == [0, 1, 2, 3, 4]


def test_resize_grows_at_once_and_shrinks_as_connections_come_back(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=2, max_size=4) as pool:
        conns = [pool.getconn() for _ in range(4)]
        pool.resize(6, 6)
        wait_until(lambda: pool.get_stats()["pool_available"] == 2, "the pool to grow")
        pool.resize(1, 2)
        give_back(pool, conns)
        wait_until(lambda: shared.sessions(APP) == 2, "the pool to shrink")
        assert pool.get_stats()["pool_size"] == 2


def test_drain_replaces_idle_connections_now_and_used_ones_when_they_return(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=2) as pool:
        used = pool.getconn()
        old = {pid(conn) for conn in [used, *pool.idle]}
        pool.drain()
        pool.putconn(used)
        wait_until(lambda: pool.get_stats()["pool_available"] == 2, "the new connections")
        assert not old & {pid(conn) for conn in pool.idle}


def test_check_replaces_the_idle_connections_that_are_dead(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=3) as pool:
        shared.terminate(APP)
        pool.check()
        wait_until(lambda: pool.get_stats()["pool_available"] == 3, "the new connections")
        assert pool.get_stats()["connections_lost"] == 3


def test_max_waiting_refuses_further_clients(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, max_waiting=1, timeout=20) as pool:
        held = pool.getconn()
        waiting = Call(use, pool)
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 1, "the first to wait")
        with pytest.raises(TooManyRequests, match="1 requests waiting"):
            pool.getconn()
        pool.putconn(held)
        waiting.result(within=LATE)


def test_close_ends_every_wait_and_closes_returned_connections(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=20) as pool:
        held = pool.getconn()
        waiting = Call(use, pool)
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 1, "the client to wait")
        pool.close()
        with pytest.raises(PoolClosed):
            waiting.result(within=LATE)
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


def test_a_timeout_of_zero_takes_an_idle_connection_or_fails_at_once(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1) as pool:
        conn = pool.getconn(timeout=0)
        began = monotonic()
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0)
        assert monotonic() - began < LATE  # the timeout of the pool is 30 s
        pool.putconn(conn)


def test_a_timeout_of_zero_keeps_connections_that_are_due_for_a_ping(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=4) as pool:
        sleep(0.7)
        pool.putconn(pool.getconn(timeout=0))
        assert pool.get_stats().get("connections_lost", 0) == 0


def test_a_pool_with_a_short_timeout_finds_leaked_connections(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=0.1) as pool:

        def lose() -> None:
            cycle = [pool.getconn()]
            cycle.append(cycle)

        with uncollected():
            Call(lose).result(within=5)
            wait_until(lambda: _serves(pool), "the connection to be found")


def _serves(pool: AnyPool) -> bool:
    with suppress(PoolTimeout):
        return bool(use(pool))
    return False


def test_usage_is_counted_in_milliseconds(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1) as pool:
        call = Call(use, pool, "SELECT pg_sleep(0.1)")
        call.result(within=LATE)
        assert 100 <= pool.get_stats()["usage_ms"] <= round(call.seconds * 1000)
        assert pool.pop_stats()["usage_ms"] >= 100
        assert pool.get_stats()["usage_ms"] == 0
