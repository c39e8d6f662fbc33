"""A timeout tells slow statements, a server that hangs or is gone, and a small pool apart."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from time import monotonic, sleep

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from abs_orm_app.pool import causes
from tests.support.partition import Partition, refusal
from tests.support.pools import Call, give_back, opened, ours, use
from tests.support.processes import run
from tests.support.servers import Server, wait_until


@pytest.fixture
def suspended(server: Server) -> Iterator[Server]:
    yield server
    server.resume()


def test_a_server_that_does_not_answer_is_asked_before_a_timeout_says_so(suspended: Server) -> None:
    for conninfo in (suspended.tcp_conninfo, suspended.conninfo):
        with opened(ours, conninfo, min_size=2) as pool:
            suspended.suspend()
            calls = [Call(use, pool, "SELECT 1", 20) for _ in range(2)]
            wait_until(lambda: len(pool.in_use) == 2, "all to be in use")
            with pytest.raises(PoolTimeout) as caught:
                use(pool, timeout=3.0)
            suspended.resume()
            for call in calls:
                call.result(within=20)
        text = str(caught.value)
        assert "the server does not answer: " in text
        assert "accepts connections, but does not answer" in text
        assert "hung-server" in text
        assert "DB_POOL_SIZE" not in text


def test_a_server_that_answers_is_not_said_to_hang(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=2) as pool:
        calls = [Call(use, pool, "SELECT pg_sleep(3)", 20) for _ in range(2)]
        wait_until(lambda: len(pool.in_use) == 2, "all to be in use")
        before = server.sessions()
        with pytest.raises(PoolTimeout) as caught:
            use(pool, timeout=2.5)
        assert server.sessions() == before, "the question opened a session"
        for call in calls:
            call.result(within=20)
    assert "all 2 connections are in use, and each runs a statement" in str(caught.value)
    assert "slow-statements" in str(caught.value)


def test_a_timeout_says_that_the_pool_is_too_small(server: Server) -> None:
    with opened(ours, server.tcp_conninfo, min_size=1) as pool, pool.connection() as conn:
        conn.execute("SELECT 1")
        with pytest.raises(PoolTimeout, match=r"the only connection is in use") as caught:
            use(pool, timeout=1.0)
    assert "1 of them idle in a transaction" not in str(caught.value)
    assert "pool-exhausted" in str(caught.value)


def test_the_log_tells_that_a_pool_is_exhausted_that_requests_fail_and_the_end(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causes, "TOLD_AFTER", 0.2)
    monkeypatch.setattr(causes, "REMIND", 1.0)
    monkeypatch.setattr(causes, "OVER_AFTER", 0.5)

    def told() -> list[tuple[int, str]]:
        return [(record.levelno, record.getMessage()) for record in caplog.records]

    with opened(ours, server.conninfo, min_size=1) as pool:
        conn = pool.getconn()
        for _ in range(3):
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0.8)
        pool.putconn(conn)
        wait_until(lambda: any("again" in text for _, text in told()), "the end")
    levels = [level for level, _ in told()]
    texts = [text for _, text in told()]
    assert levels[:2] == [logging.WARNING, logging.ERROR]
    assert "'under test': the pool is exhausted: the only connection is in use" in texts[0]
    assert "Held by thread MainThread (1)." in texts[0]
    assert "requests fail, the pool is exhausted" in texts[1]
    assert " waited, " in texts[2]
    assert "requests get connections again, after" in texts[-1]
    assert len(texts) <= 5


def test_the_log_tells_no_end_while_a_server_hangs_and_nobody_asks(
    suspended: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causes, "OVER_AFTER", 0.5)
    with opened(ours, suspended.tcp_conninfo, min_size=2) as pool:
        suspended.suspend()
        calls = [Call(use, pool, "SELECT 1", 20) for _ in range(2)]
        wait_until(lambda: len(causes._active(pool.core)) == 2, "all to wait for the server")
        with pytest.raises(PoolTimeout):
            use(pool, timeout=3.5)
        sleep(3.0)
        assert "the server does not answer" in caplog.text
        assert "again" not in caplog.text
        assert pool.core.trouble == "hung"
        suspended.resume()
        for call in calls:
            call.result(within=20)
        use(pool)
        wait_until(lambda: "requests get connections again" in caplog.text, "the end")
        assert "1 request waited, 1 failed." in caplog.text
        assert pool.core.trouble == ""


def test_the_log_tells_when_a_server_refuses_writes_and_when_it_takes_them_again(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causes, "OVER_AFTER", 0.5)
    with opened(ours, server.tcp_conninfo, min_size=1) as pool, server.admin() as admin:
        for value in ("on", "off"):
            admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            admin.execute("SELECT pg_reload_conf()")
            told = "accept them" if value == "on" else "accepts writes again"
            wait_until(lambda: use(pool) > 0 and told in caplog.text, told)  # noqa: B023
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    where = f"127.0.0.1:{server.port}"
    assert f"the server is read-only, so writes fail: {where} does not accept them." in texts[0]
    assert "its server accepts writes again, after" in texts[1]


@pytest.mark.server(roles=["app LOGIN CONNECTION LIMIT 2"])
def test_a_fault_that_hinders_no_request_any_more_is_not_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causes, "FRESH", 1.0)
    conninfo = server.conninfo.replace("user=postgres", "user=app")
    with opened(ours, conninfo, min_size=2, max_size=6) as pool:
        for call in [Call(use, pool, "SELECT pg_sleep(0.5)") for _ in range(4)]:
            call.result(within=20)
        cause = causes.cause_of(pool.core)
        assert cause is not None
        assert cause.name == "full"
        wait_until(lambda: causes.cause_of(pool.core) is None, "it to be forgotten", 5.0)


def test_a_moment_of_waiting_is_not_told(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with opened(ours, server.conninfo, min_size=1) as pool:
        calls = [Call(use, pool, "SELECT pg_sleep(0.1)", 20) for _ in range(5)]
        for call in calls:
            call.result(within=20)
    assert caplog.text == ""


# A network that is cut, for real


def test_a_network_that_is_cut_is_found_within_the_time_that_is_set(server: Server) -> None:
    if reason := refusal():
        pytest.skip(reason)
    result = run(server, cut_the_network, str(server.socket_dir), str(server.port))
    assert result.status == 0
    assert "the server cannot be reached: nothing accepts connections" in result.errors


def cut_the_network(socket_dir: str, port: str) -> None:
    with Partition(f"{socket_dir}/.s.PGSQL.{port}") as network:
        noticed = "keepalives_idle=1 keepalives_interval=1 keepalives_count=2 tcp_user_timeout=3000"
        conninfo = f"host={network.host} port={network.port} user=postgres dbname=postgres"
        with opened(ours, f"{conninfo} {noticed}", min_size=2) as pool:
            give_back(pool, [pool.getconn(), pool.getconn()])
            asleep = Call(use, pool, "SELECT pg_sleep(60)")
            wait_until(lambda: pool.get_stats()["pool_available"] == 1, "the query")
            sleep(0.2)
            network.cut()
            began = monotonic()
            unsent = Call(use, pool, "SELECT 1")
            with pytest.raises(PoolTimeout, match="cannot be reached: nothing accepts") as caught:
                use(pool, timeout=2.5)
            assert "server-down" in str(caught.value)
            for call in (asleep, unsent):
                with pytest.raises(psycopg.OperationalError):
                    call.result(within=20)
                assert call.ended_at - began < 15  # 3 s, and without the parameters 60 s
            network.mend()
            use(pool, timeout=20)
