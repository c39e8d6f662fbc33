"""What is at the other end: a pooler or not, its pool mode, what does not go together with it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from io import StringIO
from typing import Any

import psycopg
import pytest
from django.core.checks import run_checks
from django.core.management import call_command

from abs_orm_app.checks.pooler_rules import PooledAlias, pooler_findings
from abs_orm_app.facts.databases import Configured, configured
from abs_orm_app.facts.failure import explain
from abs_orm_app.facts.pooler import PATIENCE, Console, PoolerFacts, read_pooler
from abs_orm_app.facts.server import ServerFacts, read_server
from tests.support.pgbouncers import PgBouncer, needs_pgbouncer
from tests.support.projects import OURS, STOCK, database, entry
from tests.support.proxy import Proxy
from tests.support.servers import Server

pytestmark = [pytest.mark.usefixtures("unblocked"), pytest.mark.server(roles=["app LOGIN"])]

MODES = ("session", "transaction", "statement")


def look(conninfo: str, session: Mapping[str, str] | None = None) -> PoolerFacts | None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return read_pooler(connection, partial(psycopg.connect, conninfo), session)


# Facts


def test_a_server_is_no_pooler(shared: Server) -> None:
    assert look(shared.conninfo) is None
    assert look(f"{shared.conninfo} user=app") is None


def test_neither_is_a_proxy(shared: Server) -> None:
    with Proxy(shared.port) as proxy:
        assert look(f"{shared.tcp_conninfo} port={proxy.port}") is None


@needs_pgbouncer
@pytest.mark.parametrize("mode", MODES)
def test_whoever_may_ask_is_told_the_pool_mode(shared: Server, mode: str) -> None:
    with PgBouncer(shared, pool_mode=mode, default_pool_size=7, query_wait_timeout=9) as pooler:
        facts = look(pooler.conninfo)
    assert facts
    assert (facts.software, facts.pool_mode) == ("PgBouncer", mode)
    assert facts.console
    assert (facts.console.pool_size, facts.console.reserve_pool, facts.console.most) == (7, 0, None)
    assert facts.console.config["query_wait_timeout"] == "9"
    assert facts.console.version[0].isdigit()


@needs_pgbouncer
@pytest.mark.parametrize("mode", MODES)
def test_whoever_may_not_ask_can_see_the_pool_mode(shared: Server, mode: str) -> None:
    with PgBouncer(shared, pool_mode=mode, default_pool_size=3, open_console=False) as pooler:
        for role in ("postgres", "app"):
            facts = look(f"{pooler.conninfo} user={role}")
            assert facts
            assert (facts.software, facts.pool_mode) == ("PgBouncer", mode)
            assert facts.console is None


@needs_pgbouncer
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_the_pool_mode_can_be_seen_under_load(shared: Server, mode: str) -> None:
    pgbouncer = PgBouncer(shared, pool_mode=mode, default_pool_size=8, open_console=False)
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
def test_a_pool_without_a_free_connection_holds_nobody_up(shared: Server) -> None:
    with PgBouncer(shared, pool_mode="session", default_pool_size=1, open_console=False) as pooler:
        began = time.monotonic()
        facts = look(pooler.conninfo)
        assert time.monotonic() - began < PATIENCE + 10  # PgBouncer's own limit is 120 s
    assert facts
    assert (facts.software, facts.pool_mode) == ("PgBouncer", None)


@needs_pgbouncer
def test_a_console_that_says_something_else_is_no_console(shared: Server) -> None:
    """As of software that has one like PgBouncer's, or of another process on the same port."""
    with PgBouncer(shared) as pooler, PgBouncer(shared, listen_port=6433) as other:

        def connect(**more: Any) -> psycopg.Connection:
            conninfo = other.conninfo if "dbname" in more else pooler.conninfo
            return psycopg.connect(conninfo, **more)

        with psycopg.connect(pooler.conninfo, autocommit=True) as connection:
            facts = read_pooler(connection, connect)
    assert facts
    assert (facts.software, facts.pool_mode) == ("A pooler", "transaction")
    assert facts.console is None


@needs_pgbouncer
def test_what_the_pool_does_now_is_seen(shared: Server) -> None:
    with PgBouncer(shared, default_pool_size=3) as pooler, ExitStack() as held:
        for _ in range(2):
            client = held.enter_context(psycopg.connect(pooler.conninfo))
            client.execute("SELECT 1")
        facts = look(pooler.conninfo)
    assert facts
    assert facts.console
    console = facts.console
    assert (console.servers_active, console.servers_idle) == (2, 1)
    assert (console.clients_active, console.clients_waiting, console.longest_wait) == (3, 0, 0.0)


@needs_pgbouncer
def test_what_a_session_has_lost_is_seen(shared: Server) -> None:
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


# Findings


CONSOLE = Console(
    version="1.21.0",
    config={"query_wait_timeout": "30", "max_prepared_statements": "0"},
    clients_active=1,
    clients_waiting=0,
    longest_wait=0.0,
    servers_active=0,
    servers_idle=1,
    pool_size=20,
    reserve_pool=10,
    most=None,
)
TRANSACTION = PoolerFacts(software="PgBouncer", pool_mode="transaction", console=CONSOLE, lost=())
NOTE = "I031"  # in transaction pooling it is always there


@pytest.fixture
def facts(shared: Server) -> ServerFacts:
    with shared.admin() as admin:
        return read_server(admin)


def alias(engine: str = OURS, mode: str = "pgbouncer", **changes: Any) -> Configured:
    given = {
        "ENGINE": engine,
        "NAME": "shop",
        "ABS_ORM_APP": {"mode": mode},
        "DISABLE_SERVER_SIDE_CURSORS": True,
        **changes,
    }
    with database(given) as name:
        return configured(name)


def found(
    server: ServerFacts,
    pooler: PoolerFacts = TRANSACTION,
    database: Configured | None = None,
    timeout: float | None = 30.0,
) -> list[str]:
    pooled = PooledAlias(
        database=database or alias(), pooler=pooler, server=server, timeout=timeout
    )
    ids = [finding.id.removeprefix("abs_orm_app.") for finding in pooler_findings([pooled])]
    if pooler.pool_mode == "transaction":
        ids.remove(NOTE)
    return ids


def with_config(**config: str) -> PoolerFacts:
    return replace(TRANSACTION, console=replace(CONSOLE, config={**CONSOLE.config, **config}))


def test_pgbouncer_mode_and_transaction_pooling_go_together(facts: ServerFacts) -> None:
    assert found(facts) == []


def test_statement_pooling_is_an_error(facts: ServerFacts) -> None:
    assert found(facts, replace(TRANSACTION, pool_mode="statement")) == ["E031"]


@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_server_side_cursors_need_a_session(facts: ServerFacts, engine: str) -> None:
    cursors = alias(engine, DISABLE_SERVER_SIDE_CURSORS=False)
    assert found(facts, database=cursors) == ["W031"]
    assert found(facts, replace(TRANSACTION, pool_mode="session"), cursors) == []


def test_prepared_statements_need_a_pooler_that_tracks_them(facts: ServerFacts) -> None:
    prepares = alias(OPTIONS={"prepare_threshold": 5, "server_side_binding": True})
    assert found(facts, database=prepares) == ["E032"]
    assert found(facts, database=alias(OPTIONS={"prepare_threshold": 5})) == []
    assert found(facts, with_config(max_prepared_statements="100"), prepares) == []
    assert found(facts, replace(TRANSACTION, console=None), prepares) == ["W032"]
    assert found(facts, replace(TRANSACTION, pool_mode="session"), prepares) == []


def test_lost_session_settings_are_named(facts: ServerFacts) -> None:
    lost = replace(TRANSACTION, lost=("search_path", "role"))
    assert found(facts, lost) == ["W033", "W034"]
    # Django sets the role in each new session, and in session pooling that is the client's own.
    assert found(facts, replace(lost, pool_mode="session")) == ["W033"]


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_pool_in_front_of_a_pool_is_one_too_many(facts: ServerFacts, mode: Any) -> None:
    pool = alias(mode="pool", OPTIONS={"pool": {"min_size": 4, "max_size": 8}})
    assert found(facts, replace(TRANSACTION, pool_mode=mode), pool) == ["W035"]


def test_persistent_connections_are_wrong_only_with_session_pooling(facts: ServerFacts) -> None:
    persistent = alias(mode="persistent", CONN_MAX_AGE=600)
    assert found(facts, replace(TRANSACTION, pool_mode="session"), persistent) == ["W035"]
    assert found(facts, database=persistent) == []


@pytest.mark.parametrize(
    ("theirs", "ours", "ids"),
    [
        ("30", 30.0, []),
        ("120", 30.0, ["W037"]),
        ("0", 30.0, ["W037"]),
        ("1234.57", 1234.5678, []),
        ("30", None, []),
    ],
)
def test_two_timeouts_for_one_wait_contradict_each_other(
    facts: ServerFacts, theirs: str, ours: float | None, ids: list[str]
) -> None:
    assert found(facts, with_config(query_wait_timeout=theirs), timeout=ours) == ids


def test_the_pooler_must_fit_its_server(facts: ServerFacts) -> None:
    small = replace(facts, superuser=False, max_connections=25, superuser_reserved=3)
    assert found(small) == ["W038"]
    capped = replace(TRANSACTION, console=replace(CONSOLE, most=20))
    assert found(small, capped) == []


# Where they are shown


class Ran:
    """What check_pool printed for an alias, its exit code, and what the database checks said."""

    def __init__(self, given: dict[str, Any], *arguments: str) -> None:
        out = StringIO()
        with database(given) as name:
            try:
                call_command(
                    "check_pool", "--database", name, *arguments, stdout=out, no_color=True
                )
                self.code = 0
            except SystemExit as end:
                self.code = int(end.code or 0)
            checked = run_checks(databases=[name])
        self.out = out.getvalue()
        self.checked = [message.id for message in checked]


@needs_pgbouncer
def test_check_pool_tells_of_the_pooler(shared: Server) -> None:
    pool = {"pool": {"min_size": 2, "max_size": 4}}
    with PgBouncer(shared, default_pool_size=5, query_wait_timeout=30) as pooler:
        given = entry(pooler.conninfo, OPTIONS=pool)
        shown, as_json = Ran(given), Ran(given, "--format", "json")
    assert "transaction pooling" in shown.out
    assert "up to 5 + 0" in shown.out
    document = json.loads(as_json.out)
    assert document["databases"][0]["server"]["pooler"]["pool_mode"] == "transaction"
    ids = [finding["id"].removeprefix("abs_orm_app.") for finding in document["findings"]]
    assert {"W031", "W035", NOTE} <= set(ids)
    # `migrate` and `check --database` tell what is wrong, not what is only to be known.
    assert shown.checked == ["abs_orm_app.W031", "abs_orm_app.W035"]


def test_a_pooler_that_is_not_there_is_missed(shared: Server) -> None:
    ran = Ran(entry(shared.conninfo, ABS_ORM_APP={"mode": "pgbouncer"}))
    assert "WARNING W036" in ran.out
    assert ran.checked == ["abs_orm_app.W036"]


@needs_pgbouncer
def test_what_pgbouncer_says_is_explained(shared: Server) -> None:
    with PgBouncer(shared, default_pool_size=1, query_wait_timeout=0.3) as pooler:
        with psycopg.connect(pooler.conninfo) as holder:
            holder.execute("SELECT 1")
            waiting = psycopg.connect(pooler.conninfo)
            with pytest.raises(psycopg.OperationalError) as waited:
                waiting.execute("SELECT 1")
            ran = Ran(entry(pooler.conninfo))
        with pytest.raises(psycopg.OperationalError) as refused:
            psycopg.connect(pooler.conninfo, options="-c search_path=x")
    assert "PgBouncer had no free server connection" in explain(waited.value).hint
    assert "pgbouncer_ini" in explain(refused.value).hint
    assert ran.code == 1
    assert "Failed: query_wait_timeout" in ran.out
