"""A checkout hands out a live, unexpired connection, and checking that costs almost nothing."""

from __future__ import annotations

import os
import socket
from threading import Event
from time import monotonic, sleep

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from abs_orm_app.pool.pre_ping import PING_AFTER
from tests.support.pools import (
    APP,
    LATE,
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


@compared_with_stock("its check is a round trip at each checkout")
def test_a_warm_connection_is_handed_out_without_a_round_trip(
    shared: Server, make: MakePool
) -> None:
    with (
        Proxy(shared.port) as proxy,
        opened(make, f"{shared.tcp_conninfo} port={proxy.port}", min_size=1) as pool,
    ):
        use(pool)
        before, began = proxy.client_messages, monotonic()
        for _ in range(20):
            pool.putconn(pool.getconn())
        assert proxy.client_messages - before <= pauses_since(began)


def pauses_since(began: float) -> int:
    """How often this process may have paused, on a busy machine, for so long that a ping is due."""
    return int((monotonic() - began) / PING_AFTER)


def test_with_little_traffic_the_same_warm_connection_is_used_again(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=4) as pool:
        assert len({use(pool) for _ in range(8)}) == 1


def test_a_connection_that_was_idle_for_a_while_is_pinged_once(shared: Server) -> None:
    with (
        Proxy(shared.port) as proxy,
        opened(ours, f"{shared.tcp_conninfo} port={proxy.port}", min_size=1) as pool,
    ):
        use(pool)
        sleep(PING_AFTER + 0.1)
        before, began = proxy.client_messages, monotonic()
        for _ in range(5):
            pool.putconn(pool.getconn())
        assert 1 <= proxy.client_messages - before <= 1 + pauses_since(began)


def test_without_pre_ping_a_connection_is_handed_out_unchecked(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, pre_ping=False) as pool:
        shared.terminate(APP)
        conn = pool.getconn()
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
        pool.putconn(conn)
        assert use(pool)


@compared_with_stock("each failed check adds a back-off of 1, 2, 4 … s")
def test_after_a_restart_each_client_gets_a_new_connection_at_once(
    server: Server, make: MakePool
) -> None:
    with opened(make, server.conninfo, min_size=40, timeout=8) as pool:
        server.restart()
        calls = [Call(use, pool) for _ in range(8)]
        for call in calls:
            call.result(within=10)
        assert max(call.seconds for call in calls) < LATE  # the first three back-offs take 7 s


def test_after_a_restart_one_checkout_replaces_all_stale_connections(server: Server) -> None:
    may_come = Event()  # a new connection, which would otherwise serve the checkout
    may_come.set()
    with opened(ours, server.conninfo, min_size=5, configure=lambda _: may_come.wait(LATE)) as pool:
        may_come.clear()
        server.restart()
        call = Call(use, pool)
        wait_until(lambda: pool.get_stats().get("connections_stale") == 5, "all to be found")
        may_come.set()
        call.result(within=LATE)
        wait_until(lambda: server.sessions(APP) == 5, "the pool to have its size again")


def test_a_connection_whose_session_ends_is_not_handed_out_before_its_socket_is_closed(
    shared: Server,
) -> None:
    with (
        Proxy(shared.port) as proxy,
        opened(ours, f"{shared.tcp_conninfo} port={proxy.port}", min_size=1) as pool,
    ):
        proxy.closing_delay = 2.0
        with pool.connection() as conn:
            old = pid(conn)
        with shared.admin() as admin:
            admin.execute("SELECT pg_terminate_backend(%s)", [old])
        wait_until(lambda: conn._pool_entry.poll(0), "the server's last message")
        assert use(pool) != old


def test_a_connection_with_an_unread_notice_stays_in_the_pool(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1) as pool:
        with pool.connection() as conn:
            conn.execute("LISTEN gossip")
            listener = pid(conn)
        with shared.admin() as admin:
            admin.execute("NOTIFY gossip")
        wait_until(lambda: bool(pool.idle[0]._pool_entry.poll(0)), "the notice to arrive")
        assert use(pool) == listener


@compared_with_stock("a check of a hung connection waits for ever")
def test_a_hung_connection_is_replaced_before_the_timeout(server: Server, make: MakePool) -> None:
    with opened(make, server.conninfo, min_size=1, max_size=2, timeout=3) as pool:
        hung = use(pool)
        sleep(PING_AFTER + 0.1)
        server.suspend_backend(hung)
        assert Call(use, pool).result(within=3 + LATE) != hung


def test_connections_that_hang_together_cost_one_ping(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=4, timeout=2) as pool:
        conns = [pool.getconn() for _ in range(4)]
        for conn in conns:
            pool.putconn(conn)
        sleep(PING_AFTER + 0.1)
        for conn in conns:
            server.suspend_backend(pid(conn))
        first = Call(use, pool)
        first.result(within=2 + LATE)
        assert first.seconds > 0.9, "it waits for one ping"
        # All four are gone: no other client waits for a ping.
        assert pool.get_stats()["connections_lost"] == 4
        for call in [Call(use, pool, "SELECT pg_sleep(0.1)", 10.0) for _ in range(4)]:
            call.result(within=10 + LATE)


@compared_with_stock("a check of a hung connection waits for ever")
def test_a_hung_server_costs_no_more_than_the_timeout(server: Server, make: MakePool) -> None:
    with opened(make, server.conninfo, min_size=4, timeout=2) as pool:
        sleep(PING_AFTER + 0.1)
        server.suspend()
        calls = [Call(use, pool) for _ in range(4)]
        for call in calls:
            with pytest.raises(PoolTimeout):
                call.result(within=2 + LATE)
        server.resume()
        assert Call(use, pool, "SELECT 1", 10.0).result(within=10 + LATE)


@compared_with_stock("the age is looked at only when a connection is returned")
def test_an_expired_connection_is_not_handed_out(shared: Server, make: MakePool) -> None:
    with opened(make, shared.conninfo, min_size=1, max_lifetime=0.5) as pool:
        old = use(pool)
        sleep(0.6)
        assert use(pool) != old


def test_an_expired_connection_is_not_kept_at_return(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, max_lifetime=0.5) as pool:
        with pool.connection() as conn:
            sleep(0.6)
        wait_until(lambda: conn.closed, "it to be closed")
        assert use(pool)


def test_an_expired_connection_does_not_delay_a_request_when_another_is_idle(
    shared: Server,
) -> None:
    with opened(ours, shared.conninfo, min_size=1, max_size=2) as pool:
        old, young = pool.getconn(), pool.getconn()
        young_pid = pid(young)
        pool.putconn(young)
        pool.putconn(old)
        old._pool_entry.expire()
        queued = pool.get_stats()["requests_queued"]
        assert use(pool) == young_pid
        assert pool.get_stats()["requests_queued"] == queued


def test_a_check_of_hung_connections_takes_one_ping(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=4) as pool:
        conns = [pool.getconn() for _ in range(4)]
        hung = {pid(conn) for conn in conns}
        for conn in conns:
            server.suspend_backend(pid(conn))
            pool.putconn(conn)
        call = Call(pool.check)
        call.result(within=20)
        assert call.seconds < 5 + LATE, "one ping takes 5 s, four take 20 s"
        assert use(pool, timeout=20) not in hung
        server.resume()


def test_connections_opened_together_do_not_expire_together(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=8, max_lifetime=3600) as pool:
        ends = sorted(entry.expires_at for entry in pool.entries)
        assert ends[-1] - ends[0] > 1
        assert ends[-1] - ends[0] < 3600 * 0.06


def test_a_connection_that_was_closed_while_idle_is_not_handed_out(shared: Server) -> None:
    """By somebody who kept it. Another socket may have its file descriptor, and say nothing."""
    with opened(ours, shared.conninfo, min_size=1) as pool:
        kept = pool.getconn()
        pool.putconn(kept)
        left, right = socket.socketpair()
        with left, right:
            number = kept.fileno()
            kept.close()
            os.dup2(left.fileno(), number)
            try:
                assert use(pool)
            finally:
                os.close(number)
