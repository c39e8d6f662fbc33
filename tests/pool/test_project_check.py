"""The project's own check (`check=`): called at each checkout, within the deadline."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool, PoolTimeout

from abs_orm_app.pool.causes import CHANGE_AFTER
from tests.support.pools import LATE, AnyPool, Call, MakePool, opened, ours, pid, use
from tests.support.servers import Server, wait_until


def stock_with(conninfo: str, **options: Any) -> AnyPool:
    return ConnectionPool(conninfo, kwargs={"autocommit": True}, open=False, **options)


@pytest.mark.parametrize(
    ("make", "more"), [(ours, {}), (ours, {"pre_ping": False}), (stock_with, {})]
)
def test_the_check_is_called_at_each_checkout(
    server: Server, make: MakePool, more: dict[str, Any]
) -> None:
    checked: list[int] = []
    options = {"min_size": 1, "check": lambda conn: checked.append(pid(conn)), **more}
    with opened(make, server.conninfo, **options) as pool:
        backend = use(pool)
        use(pool)
        assert checked == [backend, backend]


def test_a_connection_that_the_check_refuses_is_replaced(server: Server) -> None:
    refused: list[int] = []

    def refuse_the_first(conn: psycopg.Connection[Any]) -> None:
        if not refused:
            refused.append(pid(conn))
            raise ValueError("not this one")

    with opened(ours, server.conninfo, min_size=1, check=refuse_the_first) as pool:
        backend = use(pool)
        assert refused
        assert backend not in refused
        assert pool.get_stats()["connections_stale"] == 1


@pytest.mark.parametrize("seconds", [0.0, 0.05])  # in which the pool has opened another one
def test_a_check_that_refuses_each_connection_ends_with_the_timeout(
    server: Server, seconds: float
) -> None:
    def refuse(_: object) -> None:
        sleep(seconds)
        raise ValueError("none")

    with opened(ours, server.conninfo, min_size=2, check=refuse) as pool:
        call = Call(use, pool, "SELECT 1", 1.0)
        with pytest.raises(PoolTimeout):
            call.result(within=10)


def test_a_check_that_hangs_does_not_pass_the_deadline(server: Server) -> None:
    """The connection hangs, and a new one works."""
    with opened(
        ours, server.conninfo, min_size=1, check=lambda conn: conn.execute("SELECT 1")
    ) as pool:
        hung = use(pool)
        server.suspend_backend(hung)
        call = Call(use, pool, "SELECT 1", 8.0)
        assert call.result(within=8 + LATE) != hung
        server.resume()


def test_a_check_that_hangs_is_ended_while_housekeeping_sleeps(server: Server) -> None:
    """The housekeeping thread sleeps when the check begins."""
    with opened(ours, server.conninfo, min_size=1, check=_sleep_on_the_server) as pool:
        sleep(0.3)
        began = monotonic()
        with pytest.raises(PoolTimeout):
            use(pool, timeout=1.0)
        assert monotonic() - began < 1 + LATE  # the query takes 8 s
    wait_until(lambda: server.sessions() == 0, "the sessions to end")


def _sleep_on_the_server(conn: psycopg.Connection[Any]) -> None:
    conn.execute("SELECT pg_sleep(8)")


def test_a_connection_that_the_server_has_closed_never_reaches_the_check(server: Server) -> None:
    checked: list[int] = []
    with opened(ours, server.conninfo, min_size=1, check=lambda c: checked.append(pid(c))) as pool:
        ended = use(pool)
        checked.clear()
        server.terminate()
        use(pool)
        assert ended not in checked


# A check that refuses every connection


MISSING_GRANT = "permission denied for table of_the_check"


class AlwaysRefuses:
    """A check with a bug of its own; counts the connections that the pool opens meanwhile."""

    def __init__(self, closes: bool = False) -> None:
        self.closes = closes  # the connection, as a pooler does that has no server
        self.opened = 0
        self.refuses = True

    def configure(self, _: psycopg.Connection[Any]) -> None:
        self.opened += 1

    def check(self, conn: psycopg.Connection[Any]) -> None:
        if self.refuses:
            if self.closes:
                conn.close()
            raise ValueError(MISSING_GRANT)


@pytest.fixture(params=[False, True], ids=["open", "closed"])
def refusing(
    server: Server, request: pytest.FixtureRequest
) -> Iterator[tuple[AlwaysRefuses, AnyPool]]:
    check = AlwaysRefuses(request.param)
    pool = opened(ours, server.conninfo, min_size=1, check=check.check, configure=check.configure)
    with pool as made:
        yield check, made


def test_a_check_that_always_fails_opens_few_connections_and_the_error_says_why(
    refusing: tuple[AlwaysRefuses, AnyPool],
) -> None:
    """The server and the network are well, so neither is blamed."""
    check, pool = refusing
    with pytest.raises(PoolTimeout, match="check") as caught:
        use(pool, timeout=4.0)
    assert check.opened <= 20
    assert MISSING_GRANT in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)
    assert "does not answer" not in str(caught.value)


def test_a_check_that_always_fails_is_logged_once(
    refusing: tuple[AlwaysRefuses, AnyPool], caplog: pytest.LogCaptureFixture
) -> None:
    _, pool = refusing
    for _ in range(3):
        with pytest.raises(PoolTimeout):
            use(pool, timeout=0.5)
    told = [each for each in caplog.records if MISSING_GRANT in each.getMessage()]
    assert [each.levelname for each in told].count("WARNING") == 1


def test_a_check_that_only_closes_connections_refuses_them(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=1, check=lambda conn: conn.close()) as pool:
        with pytest.raises(PoolTimeout, match="it has closed the connection"):
            use(pool, timeout=3.0)
        assert pool.statistics.connects <= 20


def test_a_check_that_accepts_again_lets_the_waiting_request_go_on(
    refusing: tuple[AlwaysRefuses, AnyPool],
) -> None:
    check, pool = refusing
    waiting = Call(use, pool, "SELECT 1", 30.0)
    sleep(1.0)
    check.refuses = False
    waiting.result(within=LATE)


def test_a_check_that_refuses_every_second_connection_is_told_now_and_then(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    checked: list[object] = []

    def check(conn: object) -> None:
        if conn not in checked:
            checked.append(conn)
            if len(checked) % 2:
                raise ValueError(MISSING_GRANT)

    began = monotonic()
    with opened(ours, server.conninfo, min_size=1, check=check) as pool:
        for _ in range(10):
            with pool.connection() as conn:
                conn.close()
        assert len(checked) >= 18
    most = 2 + (monotonic() - began) // CHANGE_AFTER
    assert 1 <= sum(MISSING_GRANT in line for line in caplog.messages) <= most  # else 10
    assert sum("accepts connections again" in line for line in caplog.messages) <= most
