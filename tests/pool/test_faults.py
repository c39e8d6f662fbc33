"""A server that is down, hangs or refuses: how long clients wait, and what the error says."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool, PoolTimeout

from abs_orm_app.pool.causes import CHANGE_AFTER
from abs_orm_app.pool.growth import RETRY_INTERVAL
from abs_orm_app.pool.server_errors import again, is_permanent
from tests.support.pools import (
    APP,
    LATE,
    AnyPool,
    Call,
    MakePool,
    compared_with_stock,
    opened,
    ours,
    stock,
    use,
)
from tests.support.proxy import Proxy
from tests.support.servers import PASSWORD_OVER_TCP, Server, wait_until

pytestmark = pytest.mark.server(
    hba=PASSWORD_OVER_TCP, roles=["app LOGIN PASSWORD 'right' CONNECTION LIMIT 3"]
)
RIGHT = {"user": "app", "password": "right"}


@contextmanager
def asking(
    kwargs: Callable[[], dict[str, Any]], conninfo: str, **options: Any
) -> Iterator[AnyPool]:
    """A pool that calls this function for its parameters each time it connects."""
    pool = ours("", **{"min_size": 1, "timeout": 10, **options})
    given = psycopg.conninfo.conninfo_to_dict(conninfo)
    pool.kwargs = lambda: {**given, "application_name": APP, "autocommit": True, **kwargs()}
    with opened(lambda _: pool, "", filled=False):
        yield pool


# Permanent faults

PERMANENT = {
    "user=app password=wrong": "password authentication failed",
    "user=app": "no password supplied",
    "user=nobody password=x": "password authentication failed",
    "dbname=nowhere": 'database "nowhere" does not exist',
    "host=nowhere.invalid": "nowhere.invalid|Name or service not known",  # older psycopg names none
    "sslmode=require": "SSL",
}


@pytest.mark.parametrize("change", PERMANENT)
def test_a_permanent_fault_is_raised_at_once_to_every_client(shared: Server, change: str) -> None:
    conninfo = psycopg.conninfo.make_conninfo(
        shared.tcp_conninfo, **psycopg.conninfo.conninfo_to_dict(change)
    )
    with opened(ours, conninfo, filled=False, min_size=2, max_size=4, timeout=30) as pool:
        for call in [Call(use, pool) for _ in range(6)]:
            with pytest.raises(psycopg.OperationalError, match=PERMANENT[change]) as caught:
                call.result(within=15)
            assert not isinstance(caught.value, PoolTimeout)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"user": "nobody"}, psycopg.OperationalError, 'role "nobody" does not exist'),
        ({"conect_timeout": 3}, psycopg.ProgrammingError, "conect_timeout"),  # libpq knows no such
    ],
)
def test_a_wrong_parameter_is_a_permanent_fault(
    shared: Server, kwargs: dict[str, Any], error: type[Exception], match: str
) -> None:
    with (
        opened(ours, shared.conninfo, filled=False, min_size=1, kwargs=kwargs) as pool,
        pytest.raises(error, match=match),
    ):
        Call(use, pool).result(within=15)


def test_opening_a_pool_that_cannot_connect_fails_at_once(shared: Server) -> None:
    pool = ours(shared.tcp_conninfo, min_size=2, kwargs={"user": "app", "password": "wrong"})
    began = monotonic()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        pool.open(wait=True, timeout=20)
    assert monotonic() - began < 10
    assert pool.closed


def test_a_permanent_fault_does_not_end_the_wait_while_a_return_can_serve_it(
    shared: Server,
) -> None:
    with opened(ours, shared.tcp_conninfo, min_size=1, max_size=2, kwargs=RIGHT) as pool:
        held = pool.getconn()
        with shared.admin() as admin:
            admin.execute("ALTER ROLE app PASSWORD 'other'")
        try:
            waiting = Call(use, pool)
            sleep(3 * RETRY_INTERVAL)
            assert waiting.is_alive()
            pool.putconn(held)
            waiting.result(within=15)
        finally:
            with shared.admin() as admin:
                admin.execute("ALTER ROLE app PASSWORD 'right'")


def test_corrected_credentials_work_without_a_new_pool(shared: Server) -> None:
    password = {"password": "wrong"}
    with asking(lambda: {"user": "app", **password}, shared.tcp_conninfo) as pool:
        with pytest.raises(psycopg.OperationalError):
            use(pool)
        password["password"] = "right"
        sleep(RETRY_INTERVAL)
        use(pool)


# Temporary faults


def test_an_outage_shorter_than_the_timeout_costs_no_error(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=4, max_size=8, timeout=20) as pool:
        server.stop()
        calls = [Call(use, pool) for _ in range(8)]
        sleep(3)
        server.start()
        back = monotonic()
        for call in calls:
            call.result(within=10)
        assert max(call.ended_at for call in calls) - back < LATE


def test_a_server_that_is_down_gets_few_attempts_to_connect(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=8, timeout=2) as pool:
        server.stop()
        began = monotonic()
        for call in [Call(use, pool) for _ in range(16)]:
            with pytest.raises(PoolTimeout):
                call.result(within=2 + LATE)
        # A few fail together; after that it is one attempt at a time.
        attempts = pool.get_stats()["connections_errors"]
        assert attempts <= 8 + (monotonic() - began) / RETRY_INTERVAL


def test_the_last_fault_is_the_cause_when_the_timeout_is_over(server: Server) -> None:
    with opened(ours, server.tcp_conninfo, min_size=2, timeout=1) as pool:
        server.stop()
        call = Call(use, pool)
        with pytest.raises(PoolTimeout, match="Connection refused") as caught:
            call.result(within=1 + LATE)
        assert "couldn't get a connection after 1.00 sec" in str(caught.value)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert "Connection refused" in str(caught.value.__cause__)


def test_an_outage_is_logged_once_and_so_is_its_end(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(ours, server.tcp_conninfo, min_size=1, timeout=20) as pool:
        server.stop()
        call = Call(use, pool)
        sleep(5 * RETRY_INTERVAL)
        server.start()
        call.result(within=10)
        wait_until(lambda: "connected again" in caplog.messages[-1], "the end to be logged")
        assert sum("cannot connect" in line for line in caplog.messages) < 5


def test_a_fault_that_comes_and_goes_is_logged_now_and_then(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[object] = []

    def configure(conn: object) -> None:
        tried.append(conn)
        if len(tried) % 2 == 0:
            raise psycopg.OperationalError("every second connection fails")

    began = monotonic()
    with opened(ours, server.conninfo, min_size=1, configure=configure, timeout=20) as pool:
        for _ in range(10):
            with pool.connection() as conn:
                conn.close()
        assert len(tried) >= 18
    most = 2 + (monotonic() - began) // CHANGE_AFTER
    assert 1 <= sum("cannot connect" in line for line in caplog.messages) <= most  # else 10
    assert sum("connected again" in line for line in caplog.messages) <= most


def test_on_a_full_server_the_clients_share_the_connections_there_are(shared: Server) -> None:
    options = {"min_size": 1, "max_size": 10, "timeout": 10, "kwargs": RIGHT}
    with opened(ours, shared.tcp_conninfo, **options) as pool:
        for call in [Call(use, pool, "SELECT pg_sleep(0.05)") for _ in range(30)]:
            call.result(within=15)
        conns = [pool.getconn() for _ in range(3)]
        with pytest.raises(PoolTimeout, match="too many connections for role"):
            pool.getconn(timeout=2)
        for conn in conns:
            pool.putconn(conn)


def test_a_connection_attempt_that_hangs_does_not_delay_the_next(shared: Server) -> None:
    """A firewall drops the first attempt; the network is back for the second."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = iter([silent.getsockname()[1]])
        port = partial(next, ports, shared.port)
        with asking(lambda: {"port": port()}, shared.tcp_conninfo, max_size=4) as pool:
            Call(use, pool).result(within=LATE)  # the attempt that hangs takes 10 s


def test_attempts_that_hang_do_not_take_every_slot_for_long(shared: Server) -> None:
    """A firewall drops all attempts for a while, and never answers them."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = {"port": silent.getsockname()[1], "connect_timeout": 20}
        options = {"max_size": 4, "timeout": 30}
        with asking(lambda: place, shared.tcp_conninfo, **options) as pool:
            calls = [Call(use, pool) for _ in range(6)]
            sleep(3)
            place["port"] = shared.port
            back = monotonic()
            for call in calls:
                call.result(within=30)
                assert call.ended_at - back < 12, "it takes 1 s at most, and without a limit 17 s"


def test_an_attempt_that_hangs_in_configure_gives_its_slot_back(shared: Server) -> None:
    hangs = [threading.Event()]

    def configure(conn: Any) -> None:
        if hangs:
            hangs.pop().wait(30)

    options = {"min_size": 1, "timeout": 9, "configure": configure}
    with opened(ours, shared.conninfo, filled=False, **options) as pool:
        call = Call(use, pool)
        call.result(within=10)
        assert call.seconds < 3 + LATE, "configure may take a third of the timeout"
        wait_until(lambda: shared.sessions(APP) == 1, "the session that hung to end")


def test_a_failed_refill_is_tried_again_without_a_waiting_client(shared: Server) -> None:
    faults = [psycopg.OperationalError("connection refused")] * 3

    def kwargs() -> dict[str, Any]:
        if faults and pool.get_stats()["pool_available"]:
            raise faults.pop()
        return {}

    with asking(kwargs, shared.conninfo, min_size=3) as pool:
        wait_until(lambda: pool.get_stats()["pool_available"] == 3, "the pool to be full")
        assert not faults


# Which faults are temporary


def test_one_address_with_a_temporary_fault_makes_the_fault_temporary(shared: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(psycopg.Error) as caught:
        psycopg.connect(
            host="127.0.0.1,127.0.0.1",
            port=f"{shared.port},{silent.getsockname()[1]}",
            user="nobody",
            password="x",
            connect_timeout=2,
        )
    # Older versions of psycopg report only the last address.
    assert "connection timeout expired" in str(caught.value)
    assert not is_permanent(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError(24, "files")])
def test_running_out_of_threads_or_files_is_a_temporary_fault(
    shared: Server, error: Exception
) -> None:
    left = [error, error]

    def kwargs() -> dict[str, Any]:
        if left:
            raise left.pop()
        return {}

    with asking(kwargs, shared.conninfo) as pool:
        assert Call(use, pool).result(within=15)


class PickyError(Exception):
    """Cannot be created again from its args."""

    def __init__(self, name: str, *, code: int) -> None:
        super().__init__(f"{name} {code}")
        self.code = code


def test_a_fault_of_any_class_is_raised_to_every_client(shared: Server) -> None:
    def kwargs() -> dict[str, Any]:
        raise PickyError("the vault says", code=403)

    with asking(kwargs, shared.conninfo) as pool:
        for call in [Call(use, pool) for _ in range(4)]:
            with pytest.raises(PickyError, match="the vault says 403") as caught:
                call.result(within=15)
            assert caught.value.code == 403


def test_an_error_of_the_parameters_is_temporary_once_a_connection_has_worked(
    server: Server,
) -> None:
    down: list[bool] = []

    def kwargs() -> dict[str, Any]:
        if down:
            raise PickyError("the vault says", code=503)
        return {}

    with asking(kwargs, server.conninfo, timeout=30) as pool:
        use(pool)
        down.append(True)
        server.terminate()
        waiting = Call(use, pool)
        with pytest.raises(PoolTimeout, match="the vault says 503"):
            use(pool, timeout=1.0)
        down.clear()
        waiting.result(within=LATE)


def test_an_exception_that_cannot_be_copied_is_raised_with_its_text() -> None:
    copy = again(UnicodeDecodeError("utf-8", b"x", 0, 1, "why"))
    assert isinstance(copy, psycopg.OperationalError)
    assert "why" in str(copy)


# The hard deadline


@compared_with_stock("it can only say that there was no connection, not why")
def test_a_server_that_accepts_and_does_not_answer_costs_no_more_than_the_timeout(
    make: MakePool,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"host=127.0.0.1 port={silent.getsockname()[1]} sslmode=require user=x"
        pool = make(address, min_size=1, timeout=1)
        pool.open()
        with pytest.raises(PoolTimeout, match="no connection could be opened in time"):
            Call(use, pool).result(within=1 + LATE)
        pool.close(timeout=0.1)


def test_a_silent_network_costs_no_more_than_the_timeout(shared: Server) -> None:
    with (
        Proxy(shared.port) as proxy,
        opened(
            ours, f"{shared.tcp_conninfo} port={proxy.port}", min_size=2, max_size=4, timeout=2
        ) as pool,
    ):
        sleep(0.6)
        proxy.blackhole()
        calls = [Call(use, pool) for _ in range(3)]
        for call in calls:
            with pytest.raises(PoolTimeout):
                call.result(within=2 + LATE)
        proxy.resume()
        use(pool, timeout=20)


# Messages


def test_an_exhausted_pool_names_its_limits_its_holders_and_what_to_do(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, max_size=2) as pool:
        first = pool.getconn()
        sleep(0.3)
        second = pool.getconn()
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=0.2)
        text = str(caught.value)
        for part in (
            "couldn't get a connection after 0.20 sec",
            "all 2 connections are in use",
            "size 1 + overflow 1",
            "2 in use, 0 idle, 1 waiting",
            "'MainThread' has held a connection for ",
            f"server process {first.info.backend_pid}",
            "DB_POOL_SIZE",
            "pool-exhausted",
        ):
            assert part in text
        pool.putconn(first)
        pool.putconn(second)


def test_a_password_is_in_no_message(shared: Server, caplog: pytest.LogCaptureFixture) -> None:
    wrong = {"user": "app", "password": "n0t-f0r-y0u"}
    with (
        caplog.at_level(logging.DEBUG),
        opened(ours, shared.tcp_conninfo, filled=False, min_size=1, kwargs=wrong) as pool,
        pytest.raises(psycopg.OperationalError) as caught,
    ):
        use(pool)
    assert "n0t-f0r-y0u" not in str(caught.value) + repr(caught.value) + caplog.text


@pytest.mark.parametrize(
    ("text", "at_first", "later"),
    [
        ('connection failed: FATAL:  password authentication failed for user "x"', True, True),
        ('connection failed: FATAL:  role "x" does not exist', True, True),
        ('connection failed: FATAL:  role "x" is not permitted to log in', True, True),
        ('connection failed: FATAL:  no pg_hba.conf entry for host "x"', True, False),
        ('connection failed: FATAL:  database "shop" does not exist', True, False),
        ("failed to resolve host 'db': [Errno -2] Name or service not known", True, False),
        (
            "failed to resolve host 'db': [Errno -3] Temporary failure in name resolution",
            False,
            False,
        ),
        ("connection failed: FATAL:  the database system is starting up", False, False),
        ("connection failed: FATAL:  sorry, too many clients already", False, False),
        ("connection failed: connection to server failed: Connection refused", False, False),
        ("connection timeout expired", False, False),
    ],
)
def test_temporary_and_permanent_faults_are_recognised_by_their_text(
    text: str, at_first: bool, later: bool
) -> None:
    """More are temporary once a connection has worked."""
    assert is_permanent(psycopg.OperationalError(text)) is at_first
    assert is_permanent(psycopg.OperationalError(text), has_connected=True) is later


def test_one_address_with_a_temporary_fault_in_the_text_is_enough() -> None:
    text = (
        'connection failed: FATAL:  role "x" does not exist\n'
        "Multiple connection attempts failed. All failures were:\n"
        "- host: 'a', port: 5432: connection failed: Connection refused\n"
        "- host: 'b', port: 5432: connection failed: FATAL:  role \"x\" does not exist"
    )
    assert not is_permanent(psycopg.OperationalError(text))


@pytest.mark.parametrize("make", [ours, stock])
def test_reconnect_failed_is_called_at_once_without_a_timeout(make: MakePool) -> None:
    called: list[ConnectionPool[psycopg.Connection]] = []
    nowhere = "host=127.0.0.1 port=1 user=x dbname=x"
    options = {"min_size": 1, "reconnect_timeout": 0, "reconnect_failed": called.append}
    with opened(make, nowhere, filled=False, **options) as pool:
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=1)
        assert called == [pool]


def test_reconnect_failed_is_called_once_for_a_long_outage(server: Server) -> None:
    called: list[ConnectionPool[psycopg.Connection]] = []
    options = {"reconnect_timeout": 1, "reconnect_failed": called.append}
    with opened(ours, server.conninfo, min_size=1, timeout=3, **options) as pool:
        server.stop()
        with pytest.raises(PoolTimeout):
            use(pool)
        assert called == [pool]
        server.start()
        wait_until(lambda: bool(Call(use, pool).result(within=3 + LATE)), "the pool to be back")
