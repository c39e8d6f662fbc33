"""The rules on a pooler, with facts of a real server, and where their findings are shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from django.core.checks import run_checks

from abs_orm_app.checks.pooler_rules import pooler_findings
from abs_orm_app.facts.databases import Configured, configured
from abs_orm_app.facts.pooler import PoolerFacts
from tests.support.pgbouncers import PgBouncer, needs_pgbouncer
from tests.support.projects import OURS, STOCK, Ran, database, entry
from tests.support.servers import Server

pytestmark = [pytest.mark.usefixtures("unblocked"), pytest.mark.server(roles=["app LOGIN"])]


TRANSACTION = PoolerFacts(pool_mode="transaction", lost=())
NOTE = "I031"  # always there in transaction pooling


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


def found(pooler: PoolerFacts = TRANSACTION, database: Configured | None = None) -> list[str]:
    findings = pooler_findings(database or alias(), pooler)
    ids = [finding.id.removeprefix("abs_orm_app.") for finding in findings]
    if pooler.pool_mode == "transaction":
        ids.remove(NOTE)
    return ids


def test_pgbouncer_mode_and_transaction_pooling_go_together() -> None:
    assert found() == []


def test_statement_pooling_is_an_error() -> None:
    assert found(replace(TRANSACTION, pool_mode="statement")) == ["E031"]


@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_server_side_cursors_need_a_session(engine: str) -> None:
    cursors = alias(engine, DISABLE_SERVER_SIDE_CURSORS=False)
    assert found(database=cursors) == ["W031"]
    assert found(replace(TRANSACTION, pool_mode="session"), cursors) == []


def test_prepared_statements_need_a_pooler_that_supports_them() -> None:
    prepares = alias(OPTIONS={"prepare_threshold": 5, "server_side_binding": True})
    assert found(database=prepares) == ["W032"]
    assert found(database=alias(OPTIONS={"prepare_threshold": 5})) == []
    assert found(replace(TRANSACTION, pool_mode="session"), prepares) == []


def test_lost_session_settings_are_named() -> None:
    lost = replace(TRANSACTION, lost=("search_path", "role"))
    assert found(lost) == ["W033", "W034"]
    # In session pooling, Django sets the role in the session that the client keeps.
    assert found(replace(lost, pool_mode="session")) == ["W033"]


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_pool_in_front_of_a_pooler_is_found(mode: Any) -> None:
    pool = alias(mode="pool", OPTIONS={"pool": {"min_size": 4, "max_size": 8}})
    assert found(replace(TRANSACTION, pool_mode=mode), pool) == ["W035"]


def test_persistent_connections_are_wrong_only_with_session_pooling() -> None:
    persistent = alias(mode="persistent", CONN_MAX_AGE=600)
    assert found(replace(TRANSACTION, pool_mode="session"), persistent) == ["W035"]
    assert found(database=persistent) == []


# Where they are shown


@needs_pgbouncer
def test_check_pool_shows_the_pooler_and_its_findings(shared: Server) -> None:
    pool = {"pool": {"min_size": 2, "max_size": 4}}
    with PgBouncer(shared) as pooler, database(entry(pooler.conninfo, OPTIONS=pool)) as name:
        shown, document = Ran(database=[name]).out, Ran(database=[name], format="json").json
        checked = [message.id for message in run_checks(databases=[name])]
    assert "transaction pooling" in shown
    assert document["databases"][0]["server"]["pooler"]["pool_mode"] == "transaction"
    ids = [finding["id"].removeprefix("abs_orm_app.") for finding in document["findings"]]
    assert {"W031", "W035", NOTE} <= set(ids)
    # `migrate` and `check --database` show errors and warnings, but no information.
    assert checked == ["abs_orm_app.W031", "abs_orm_app.W035"]


def test_pgbouncer_mode_without_a_pooler_is_found(shared: Server) -> None:
    with database(entry(shared.conninfo, ABS_ORM_APP={"mode": "pgbouncer"})) as name:
        assert "WARNING W036" in Ran(database=[name]).out
        assert [each.id for each in run_checks(databases=[name])] == ["abs_orm_app.W036"]
