"""The rules on a pooler, with facts of a real server, and where their findings are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command

from abs_orm_app.checks.pooler_rules import PooledAlias, pooler_findings
from abs_orm_app.facts.databases import Configured, configured
from abs_orm_app.facts.pooler import Console, PoolerFacts
from abs_orm_app.facts.server import ServerFacts, read_server
from tests.support.pgbouncers import PgBouncer, needs_pgbouncer
from tests.support.projects import OURS, STOCK, database, entry
from tests.support.servers import Server

pytestmark = [pytest.mark.usefixtures("unblocked"), pytest.mark.server(roles=["app LOGIN"])]


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
NOTE = "I031"  # always there in transaction pooling


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


def test_prepared_statements_need_a_pooler_that_supports_them(facts: ServerFacts) -> None:
    prepares = alias(OPTIONS={"prepare_threshold": 5, "server_side_binding": True})
    assert found(facts, database=prepares) == ["E032"]
    assert found(facts, database=alias(OPTIONS={"prepare_threshold": 5})) == []
    assert found(facts, with_config(max_prepared_statements="100"), prepares) == []
    assert found(facts, replace(TRANSACTION, console=None), prepares) == ["W032"]
    assert found(facts, replace(TRANSACTION, pool_mode="session"), prepares) == []


def test_lost_session_settings_are_named(facts: ServerFacts) -> None:
    lost = replace(TRANSACTION, lost=("search_path", "role"))
    assert found(facts, lost) == ["W033", "W034"]
    # In session pooling, Django sets the role in the session that the client keeps.
    assert found(facts, replace(lost, pool_mode="session")) == ["W033"]


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_pool_in_front_of_a_pooler_is_found(facts: ServerFacts, mode: Any) -> None:
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
def test_a_pooler_that_waits_longer_than_the_pool_is_found(
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
def test_check_pool_shows_the_pooler_and_its_findings(shared: Server) -> None:
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
    # `migrate` and `check --database` show errors and warnings, but no information.
    assert shown.checked == ["abs_orm_app.W031", "abs_orm_app.W035"]


def test_pgbouncer_mode_without_a_pooler_is_found(shared: Server) -> None:
    ran = Ran(entry(shared.conninfo, ABS_ORM_APP={"mode": "pgbouncer"}))
    assert "WARNING W036" in ran.out
    assert ran.checked == ["abs_orm_app.W036"]
