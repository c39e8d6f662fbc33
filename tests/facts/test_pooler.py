"""Whether a connection goes through a pooler, and its pool mode."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import psycopg
import pytest

from abs_orm_app.facts.failure import failure_of
from abs_orm_app.facts.pooler import SECOND_TIMEOUT, PoolerFacts, read_pooler
from tests.support.pgbouncers import PgBouncer, needs_pgbouncer
from tests.support.projects import Ran, database, entry
from tests.support.proxy import Proxy
from tests.support.servers import Server

pytestmark = [pytest.mark.usefixtures("unblocked"), pytest.mark.server(roles=["app LOGIN"])]

MODES = ("session", "transaction", "statement")


def look(conninfo: str, session: Mapping[str, str] | None = None) -> PoolerFacts | None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return read_pooler(connection, partial(psycopg.connect, conninfo), session)


# Facts


def test_a_server_is_not_taken_for_a_pooler(shared: Server) -> None:
    assert look(shared.conninfo) is None
    assert look(f"{shared.conninfo} user=app") is None


def test_a_proxy_is_not_taken_for_a_pooler(shared: Server) -> None:
    with Proxy(shared.port) as proxy:
        assert look(f"{shared.tcp_conninfo} port={proxy.port}") is None


@needs_pgbouncer
@pytest.mark.parametrize("mode", MODES)
def test_the_pool_mode_is_recognised(shared: Server, mode: str) -> None:
    with PgBouncer(shared, pool_mode=mode, default_pool_size=3) as pooler:
        for role in ("postgres", "app"):
            facts = look(f"{pooler.conninfo} user={role}")
            assert facts
            assert facts.pool_mode == mode


@needs_pgbouncer
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_the_pool_mode_is_recognised_under_load(shared: Server, mode: str) -> None:
    pgbouncer = PgBouncer(shared, pool_mode=mode, default_pool_size=8)
    with pgbouncer as pooler, busy(pooler.conninfo, clients=5):
        seen = {facts.pool_mode for _ in range(5) if (facts := look(pooler.conninfo))}
    assert seen == {mode}


@contextmanager
def busy(conninfo: str, clients: int) -> Iterator[None]:
    end, working = threading.Event(), threading.Barrier(clients + 1)

    def work() -> None:
        with psycopg.connect(conninfo, autocommit=True, prepare_threshold=None) as connection:
            connection.execute("SELECT 1")
            working.wait(20)
            while not end.is_set():
                connection.execute("SELECT pg_sleep(0.005)")

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    working.wait(20)
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join(20)


@needs_pgbouncer
def test_a_pooler_without_a_free_connection_does_not_block_the_check(shared: Server) -> None:
    with PgBouncer(shared, pool_mode="session", default_pool_size=1) as pooler:
        began = time.monotonic()
        facts = look(pooler.conninfo)
        assert time.monotonic() - began < SECOND_TIMEOUT + 10  # PgBouncer's own limit is 120 s
    assert facts
    assert facts.pool_mode is None


@needs_pgbouncer
def test_lost_session_settings_are_recognised(shared: Server) -> None:
    wanted = {"statement_timeout": "300s", "search_path": "shop", "role": "app", "no.such": "x"}
    with PgBouncer(shared, ignore_startup_parameters="options") as pooler:
        facts = look(f"{pooler.conninfo} options='-c search_path=shop'", wanted)
        assert facts
        assert facts.lost == ("statement_timeout", "search_path", "role", "no.such")
        with shared.admin() as admin:
            admin.execute("ALTER ROLE postgres SET statement_timeout = '5min'")
        try:
            pooler.restart()
            facts = look(pooler.conninfo, {"statement_timeout": "300s", "role": "none"})
        finally:
            with shared.admin() as admin:
                admin.execute("ALTER ROLE postgres RESET ALL")
    assert facts
    assert facts.lost == ()


@needs_pgbouncer
def test_pgbouncers_errors_have_hints(shared: Server) -> None:
    with PgBouncer(shared, default_pool_size=1, query_wait_timeout=2) as pooler:
        with psycopg.connect(pooler.conninfo) as holder:
            holder.execute("SELECT 1")
            waiting = psycopg.connect(pooler.conninfo)
            with pytest.raises(psycopg.OperationalError) as waited:
                waiting.execute("SELECT 1")
            with database(entry(pooler.conninfo)) as alias:
                ran = Ran(database=[alias])
        with pytest.raises(psycopg.OperationalError) as refused:
            psycopg.connect(pooler.conninfo, options="-c search_path=x")
    assert "PgBouncer had no free server connection" in failure_of(waited.value).hint
    assert "pgbouncer_ini" in failure_of(refused.value).hint
    assert ran.code == 1
    assert "no more connections: query_wait_timeout" in ran.out
