"""The rules on a project that has the app, but does not use its pool."""

from __future__ import annotations

from typing import Any

import pytest

from abs_orm_app.checks.adoption_rules import adoption_findings, unread_settings
from abs_orm_app.checks.production_rules import deploy_findings
from abs_orm_app.checks.without_server import settings_findings
from abs_orm_app.environment import database_from_env
from abs_orm_app.facts.databases import configured
from tests.support.aliases import facts, from_env, ids
from tests.support.projects import OURS, SQLITE, STOCK, Ran, database, entry, manage


def test_djangos_pool_is_found_with_the_line_to_change() -> None:
    [finding] = adoption_findings([facts(STOCK, OPTIONS={"pool": True})])
    assert finding.number == "I002"
    assert finding.fix == '"ENGINE": "abs_orm_app.backends.postgresql"'
    assert "has a pool of Django's own" in finding.message


@pytest.mark.parametrize("age", [0, 60])
def test_djangos_engine_is_found_with_the_lines_that_give_a_pool(age: int) -> None:
    """As by env.db(), or dj_database_url.config(conn_max_age=600)."""
    mine: dict[str, Any] = {"ENGINE": STOCK, "NAME": "x", "CONN_MAX_AGE": age}
    [finding] = adoption_findings([facts(**mine)])
    assert finding.number == "I002"
    exec(finding.fix, {"DATABASES": {"other": mine}})  # noqa: S102
    assert settings_findings([facts(**{**mine, "CONN_HEALTH_CHECKS": True})]) == []


@pytest.mark.parametrize("age", [0, 60, None])
def test_our_engine_without_a_pool_is_a_warning_whose_lines_turn_it_on(age: int | None) -> None:
    """As by dj_database_url.config(conn_max_age=600, engine=...), or cookiecutter's settings."""
    mine: dict[str, Any] = {"ENGINE": OURS, "NAME": "x", "CONN_MAX_AGE": age}
    [finding] = adoption_findings([facts(**mine)])
    assert finding.number == "W006"
    databases = {"other": mine}
    exec(finding.fix, {"DATABASES": databases})  # noqa: S102
    turned_on = facts(**{"CONN_HEALTH_CHECKS": False, **databases["other"]})
    assert adoption_findings([turned_on]) == []
    assert deploy_findings(turned_on) == []


@pytest.mark.parametrize("given", [False, {}])
def test_a_pool_that_is_off_is_quoted(given: object) -> None:
    """Django takes an empty dict for none."""
    [finding] = adoption_findings([facts(OPTIONS={"pool": given})])
    assert f"but OPTIONS['pool'] is {given!r}, so each request opens" in finding.message


@pytest.mark.parametrize("given", [{"sslmode": "require"}, {}])
def test_options_that_replace_those_of_the_environment_are_found(given: dict[str, str]) -> None:
    """`DATABASES["default"]["OPTIONS"] = ...` below database_from_env() takes the pool away."""
    made = database_from_env(environ={"DATABASE_URL": "postgresql:///x"})
    with database({**made, "OPTIONS": given}) as alias:
        [finding] = adoption_findings([configured(alias)])
    assert finding.number == "W006"
    options = dict(made["OPTIONS"])
    exec(finding.fix, {"DATABASES": {"other": {"OPTIONS": options}}})  # noqa: S102
    assert options["pool"]


def test_a_mode_without_its_pool_is_no_choice() -> None:
    [finding] = adoption_findings([facts(ABS_ORM_APP={"mode": "pool"})])
    assert finding.number == "W006"


@pytest.mark.parametrize("mode", ["pool", "persistent", "pgbouncer", "null"])
def test_a_mode_that_was_chosen_is_no_finding(mode: str) -> None:
    assert adoption_findings([from_env(DB_POOL_MODE=mode)]) == []


def test_a_mode_that_the_entry_names_is_a_choice_too() -> None:
    chosen = {"mode": "persistent"}
    assert adoption_findings([facts(OURS, CONN_MAX_AGE=60, ABS_ORM_APP=chosen)]) == []


def test_pool_settings_beside_an_entry_that_was_not_made_from_them_are_named() -> None:
    given = dict.fromkeys(["DB_POOL_SIZE", "DB_MAX_OVERFLOW", "HOME"], "5")
    [finding] = unread_settings([facts(OURS, OPTIONS={"pool": True})], given)
    assert finding.number == "W007"
    assert "DB_POOL_SIZE, DB_MAX_OVERFLOW" in finding.message
    assert unread_settings([facts(OURS)], {"HOME": "/"}) == []
    assert unread_settings([facts(**SQLITE)], given) == []


@pytest.mark.parametrize("url", ["postgresql://app@/x", "postgres://app@/x", "embedded:///x"])
def test_a_url_that_no_database_was_made_from_is_named(url: str) -> None:
    """The app was added to INSTALLED_APPS, but the line of DATABASES was forgotten."""
    given = {"DATABASE_URL": url, "DB_POOL_SIZE": "5"}
    in_a_file = facts(**{**SQLITE, "NAME": "db.sqlite3"})
    [finding] = unread_settings([in_a_file], given)
    assert finding.message == (
        "Nothing reads DATABASE_URL, DB_POOL_SIZE: no database of this project is PostgreSQL."
    )
    assert finding.fix == "DATABASES['default'] = database_from_env()"
    assert unread_settings([in_a_file], {"DATABASE_URL": "sqlite:///x"}) == []


@pytest.mark.parametrize("name", [":memory:", "file:shop?mode=memory&cache=shared"])
def test_a_url_beside_a_database_in_memory_is_no_finding(name: str) -> None:
    """Settings for tests choose it on purpose."""
    given = {"DATABASE_URL": "postgresql:///x"}
    assert unread_settings([facts(**{**SQLITE, "NAME": name})], given) == []


def test_a_setting_that_the_given_environ_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a class of pydantic-settings that does not declare it."""
    monkeypatch.setenv("DB_POOL_SIZE", "5")
    monkeypatch.setenv("DB_POOL_TIMEOUT", "7")
    given = {"DATABASE_URL": "postgresql:///x", "DB_POOL_SIZE": "5"}
    with database(database_from_env(environ=given)) as alias:
        found = settings_findings([configured(alias)])
    assert [finding.message for finding in found] == [
        "Nothing reads DB_POOL_TIMEOUT: the `environ` of database_from_env lacks it."
    ]


def test_a_setting_that_one_with_the_prefix_overrides_is_no_finding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "5")
    given = {"R_DATABASE_URL": "postgresql:///x", "R_DB_POOL_SIZE": "6", "DB_POOL_SIZE": "5"}
    with database(database_from_env("R_", environ=given)) as alias:
        assert settings_findings([configured(alias)]) == []


def test_check_names_them_in_a_project_whose_entry_is_written_by_hand() -> None:
    by_hand = "--settings=tests.project.by_hand_settings"
    done = manage("check", by_hand, DB_POOL_SIZE="5")
    assert "(abs_orm_app.W007) Nothing reads DB_POOL_SIZE: DATABASES['default']" in done.stderr
    assert "abs_orm_app.W006" in done.stderr
    assert "W007" not in manage("check", DB_POOL_SIZE="5", DATABASE_URL="postgresql:///x").stderr


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
