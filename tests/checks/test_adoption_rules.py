"""The rules on a project that has the app, but does not use its pool."""

from __future__ import annotations

import pytest

from abs_orm_app.checks.adoption_rules import adoption_findings
from tests.support.aliases import facts, from_env, ids
from tests.support.projects import OURS, SQLITE, STOCK, Ran, database, entry, manage


@pytest.mark.parametrize("options", [{}, {"pool": True}])
def test_djangos_engine_is_found_with_the_line_to_change(options: dict[str, object]) -> None:
    [finding] = adoption_findings([facts(STOCK, OPTIONS=options)])
    assert finding.number == "I002"
    assert finding.fix == '"ENGINE": "abs_orm_app.backends.postgresql"'
    assert ("has a pool of Django's own" in finding.message) == bool(options)


def test_our_engine_without_a_pool_is_found_where_nobody_chose_a_mode() -> None:
    [finding] = adoption_findings([facts(OURS)])
    assert finding.number == "I002"
    assert '"pool": ' in finding.fix


@pytest.mark.parametrize("mode", ["pool", "persistent", "pgbouncer", "null"])
def test_a_mode_that_was_chosen_is_no_finding(mode: str) -> None:
    assert adoption_findings([from_env(DB_POOL_MODE=mode)]) == []


def test_persistent_connections_by_hand_are_a_choice_too() -> None:
    assert adoption_findings([facts(OURS, CONN_MAX_AGE=60)]) == []


def test_another_vendor_is_no_finding() -> None:
    assert adoption_findings([facts(**SQLITE)]) == []


def test_empty_databases_are_a_warning_with_the_line_to_write() -> None:
    [finding] = adoption_findings([facts("django.db.backends.dummy")])
    assert ids([finding]) == ["W002"]
    assert finding.fix == 'DATABASES = {"default": database_from_env()}'


def test_an_empty_default_beside_others_is_no_finding() -> None:
    others = [facts("django.db.backends.dummy"), facts(OURS, OPTIONS={"pool": True})]
    assert adoption_findings(others) == []


def test_check_shows_it() -> None:
    stock = "--settings=abs_project.stock_settings"
    done = manage("check", stock, DATABASE_URL="postgresql:///x")
    assert done.returncode == 0
    assert "abs_orm_app.I002" in done.stderr


@pytest.mark.usefixtures("unblocked")
def test_check_pool_shows_it_for_the_aliases_it_looks_at() -> None:
    down = "host=127.0.0.1 port=1 user=x dbname=x"
    with database(entry(down, STOCK)) as alias:
        assert "INFO I002 other" in Ran(database=[alias]).out
