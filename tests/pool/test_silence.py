"""A timeout tells a server that does not answer from a pool that is too small."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, sleep

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from abs_orm_app.pool.silence import Line, Silence, line, silence
from tests.support.partition import Partition, refusal
from tests.support.pools import Call, opened, ours, use
from tests.support.processes import run
from tests.support.servers import Server, wait_until

WAITS, IDLE = Line(True, 9.0, False), Line(False, 9.0, False)
GONE = Line(True, 9.0, True)


@pytest.mark.parametrize(
    ("lines", "waited", "expected"),
    [
        ([WAITS, WAITS], 10.0, Silence(9.0, False)),
        ([WAITS, Line(True, 6.0, False)], 10.0, Silence(6.0, False)),
        ([WAITS, Line(True, 4.0, False)], 10.0, None),  # one was heard from meanwhile
        ([WAITS, IDLE], 10.0, None),  # its holder does something else
        ([GONE, Line(True, 2.0, True)], 10.0, Silence(2.0, True)),
        ([GONE, WAITS], 10.0, Silence(9.0, False)),
        ([Line(True, 0.1, True)], 0.1, None),  # too short to tell
        ([Line(True, None, False)], 10.0, None),  # a Unix socket
        ([], 10.0, None),
    ],
)
def test_silence_is_that_of_all_connections_in_use(
    lines: list[Line], waited: float, expected: Silence | None
) -> None:
    assert silence(lines, waited) == expected


@pytest.fixture
def suspended(server: Server) -> Iterator[Server]:
    yield server
    server.resume()


def test_the_kernel_tells_how_long_a_server_has_been_silent(suspended: Server) -> None:
    with psycopg.connect(suspended.tcp_conninfo, autocommit=True) as conn:
        assert not line(conn.pgconn).waits
        call = Call(conn.execute, "SELECT pg_sleep(60)")
        wait_until(lambda: line(conn.pgconn).waits, "the query to be sent")
        sleep(0.6)
        seen = line(conn.pgconn)
        assert seen.silent is not None
        assert seen.silent >= 0.5
        assert not seen.unanswered, "the kernel of a server that is stopped acknowledges"
        conn.cancel()
        with pytest.raises(psycopg.errors.QueryCanceled):
            call.result(within=20)
        assert line(conn.pgconn).silent is not None
    assert line(conn.pgconn) == Line(False, None, False)


def test_the_kernel_tells_nothing_about_a_unix_socket(server: Server) -> None:
    with psycopg.connect(server.conninfo) as conn:
        assert line(conn.pgconn) == Line(False, None, False)


def test_a_timeout_says_that_the_server_does_not_answer(suspended: Server) -> None:
    with opened(ours, suspended.tcp_conninfo, min_size=2) as pool:
        suspended.suspend()
        calls = [Call(use, pool, "SELECT 1", 20) for _ in range(2)]
        wait_until(lambda: pool.get_stats()["pool_available"] == 0, "all to be in use")
        with pytest.raises(PoolTimeout) as caught:
            use(pool, timeout=3.0)
        suspended.resume()
        for call in calls:
            call.result(within=20)
    text = str(caught.value)
    assert "nothing has come back on any of the 2 connections in use for" in text
    assert "hung-server" in text
    assert "DB_POOL_SIZE" not in text.partition("statement")[0]


def test_a_timeout_says_that_the_pool_is_too_small(server: Server) -> None:
    with opened(ours, server.tcp_conninfo, min_size=1) as pool, pool.connection() as conn:
        conn.execute("SELECT 1")
        with pytest.raises(PoolTimeout, match=r"the only connection is in use") as caught:
            use(pool, timeout=1.0)
    assert "pool-exhausted" in str(caught.value)


# A network that is cut, for real


def test_a_network_that_is_cut_is_found_within_the_time_that_is_set(server: Server) -> None:
    if reason := refusal():
        pytest.skip(reason)
    result = run(server, cut_the_network, str(server.socket_dir), str(server.port))
    assert (result.status, result.errors) == (0, "")


def cut_the_network(socket_dir: str, port: str) -> None:
    with Partition(f"{socket_dir}/.s.PGSQL.{port}") as network:
        noticed = "keepalives_idle=1 keepalives_interval=1 keepalives_count=2 tcp_user_timeout=3000"
        conninfo = f"host={network.host} port={network.port} user=postgres dbname=postgres"
        with opened(ours, f"{conninfo} {noticed}", min_size=2) as pool:
            for conn in [pool.getconn(), pool.getconn()]:
                pool.putconn(conn)
            asleep = Call(use, pool, "SELECT pg_sleep(60)")
            wait_until(lambda: pool.get_stats()["pool_available"] == 1, "the query")
            sleep(0.2)
            network.cut()
            began = monotonic()
            unsent = Call(use, pool, "SELECT 1")
            with pytest.raises(PoolTimeout, match="acknowledges nothing") as caught:
                use(pool, timeout=2.5)
            assert "hung-server" in str(caught.value)
            for call in (asleep, unsent):
                with pytest.raises(psycopg.OperationalError):
                    call.result(within=20)
                assert call.ended_at - began < 15  # 3 s, and without the parameters 60 s
            network.mend()
            use(pool, timeout=20)
