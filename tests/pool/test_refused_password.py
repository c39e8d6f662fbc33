"""A password that the server refuses: the pool does not knock several times a second for as long as
requests come, which fills the server's log, and locks the account of some services.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from time import sleep

import psycopg
import pytest

from tests.support.pools import AnyPool, Call, opened, ours, repeating, use
from tests.support.servers import PASSWORD_OVER_TCP, Server, wait_until

SECONDS = 3.0
MOST = 8  # attempts in that time; at 0.2 s each there would be 15

pytestmark = pytest.mark.server(hba=PASSWORD_OVER_TCP, roles=["app LOGIN PASSWORD 'right'"])


def attempts(server: Server) -> int:
    return server.log.count("password authentication failed")


@pytest.fixture
def pool(server: Server) -> Iterator[AnyPool]:
    pool = ours(f"{server.tcp_conninfo} user=app password=wrong", min_size=2, timeout=2)
    pool.open()
    yield pool
    pool.close()


def asks(pool: AnyPool) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        use(pool)


def test_a_refused_password_is_retried_less_and_less_often(server: Server, pool: AnyPool) -> None:
    with repeating(partial(asks, pool), 4):
        sleep(SECONDS)
    assert 1 <= attempts(server) <= MOST


def test_an_outage_before_it_does_not_count(server: Server) -> None:
    """A server that is back may refuse a password for a moment."""
    conninfo = f"{server.tcp_conninfo} user=app password=wrong"
    server.stop()
    with opened(ours, conninfo, filled=False, min_size=1, timeout=30) as pool:
        waiting = Call(use, pool)
        sleep(4)
        server.start()
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            waiting.result(within=30)
        assert pool.core.fault.retry_after < 2


def test_each_request_meanwhile_gets_the_reason_at_once(pool: AnyPool) -> None:
    for _ in range(5):
        call = Call(use, pool)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            call.result(within=20)
        assert call.seconds < 1.5  # of the timeout of 2


def test_a_password_that_is_right_again_is_used_soon(server: Server, pool: AnyPool) -> None:
    with pytest.raises(psycopg.OperationalError):
        use(pool)
    with server.admin() as admin:
        admin.execute("ALTER ROLE app PASSWORD 'wrong'")

    def is_served() -> bool:
        try:
            return isinstance(use(pool), int)
        except psycopg.OperationalError:
            return False

    wait_until(is_served, "the pool to try again")
