"""The rules on DATABASES alone. Nothing here connects."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from abs_orm_app.checks import settings_rules
from abs_orm_app.checks.adoption_rules import adoption_findings
from abs_orm_app.checks.finding import Finding
from abs_orm_app.checks.settings_rules import (
    Installed,
    entry_findings,
    static_findings,
    unknown_variables,
)
from abs_orm_app.environment import SettingsError, database_from_env
from abs_orm_app.facts.databases import Configured, pool_parameters
from tests.support.aliases import facts, from_env, ids, pool
from tests.support.projects import OURS, ROOT, SQLITE, STOCK

INSTALLED = Installed(
    psycopg="3.2.1",
    psycopg_pool="3.2.0",
    pool_parameters=tuple(pool_parameters()),
    check_is_free=False,
)


def static(database: Configured, installed: Installed = INSTALLED) -> list[Finding]:
    return static_findings(database, installed) if database.pool else []


@pytest.mark.parametrize("engine", [OURS, STOCK])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"min_size": 0, "max_size": 1},
        {"min_size": 4, "max_size": None},
        {"min_size": 4, "max_size": 4, "max_lifetime": float("inf"), "max_idle": 0.5},
        {"timeout": 5, "max_waiting": 0, "num_workers": 1, "reconnect_timeout": 0},
    ],
)
def test_a_pool_that_can_work_has_no_finding(engine: str, parameters: dict[str, Any]) -> None:
    assert static(pool(engine, **parameters)) == []


def test_entries_from_the_environment_have_no_finding() -> None:
    for mode in ("pool", "persistent", "pgbouncer", "null"):
        assert static(from_env(DB_POOL_MODE=mode, DB_POOL_RECYCLE="-1")) == []


@pytest.mark.parametrize("age", [60, None])
def test_a_pool_and_persistent_connections_exclude_each_other(age: int | None) -> None:
    [finding] = static(facts(OPTIONS={"pool": True}, CONN_MAX_AGE=age))
    assert finding.id == "abs_orm_app.E001"
    assert f"CONN_MAX_AGE={age}" in finding.message
    assert finding.alias == "other"


@pytest.mark.parametrize("version", [None, "3.1.19", "2.9.10", "3.1.dev1"])
def test_missing_and_old_drivers_are_found(version: str | None) -> None:
    installed = replace(INSTALLED, psycopg=version, psycopg_pool=version)
    assert ids(static(pool(), installed)) == ["E002", "E003"]


@pytest.mark.parametrize("version", ["3.2", "3.2.dev1", "3.10.0", "4.0rc1"])
def test_newer_drivers_have_no_finding(version: str) -> None:
    assert static(pool(), replace(INSTALLED, psycopg=version, psycopg_pool=version)) == []


def test_the_minimum_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = (bound.partition(",")[0] for bound in project["dependencies"])
    bounds = dict(re.split(r"(?:\[.*\])?>=", bound) for bound in lowest)
    assert bounds["psycopg"] == ".".join(map(str, settings_rules.LEAST_VERSION))
    assert bounds["psycopg-pool"] == ".".join(map(str, settings_rules.LEAST_VERSION))


def test_a_mistyped_parameter_is_found_with_a_suggestion() -> None:
    [finding] = static(pool(min_sise=4))
    assert finding.id == "abs_orm_app.E004"
    assert "'min_sise' (did you mean 'min_size'?)" in finding.message


def test_without_psycopg_pool_its_parameters_are_not_checked() -> None:
    installed = replace(INSTALLED, psycopg_pool=None, pool_parameters=())
    assert ids(static(pool(min_sise=4), installed)) == ["E003"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_size", -1),
        ("min_size", "4"),
        ("min_size", True),
        ("max_size", 0),
        ("max_size", 4.5),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", float("inf")),
        ("timeout", float("nan")),
        ("timeout", None),
        ("max_lifetime", 0),
        ("max_idle", "600"),
        ("max_idle", float("inf")),
        ("max_waiting", -1),
        ("check", "shop.db.check"),
        ("reset", True),
        ("num_workers", 0),
        ("reconnect_timeout", -1),
    ],
)
def test_an_impossible_value_is_found(name: str, value: Any) -> None:
    [finding] = static(pool(**{"max_size": 9, name: value}))
    assert finding.id == "abs_orm_app.E005"
    assert name in finding.message


def test_a_value_that_is_not_a_number_is_not_shown() -> None:
    [finding] = static(pool(timeout="s3cret"))
    assert "s3cret" not in finding.message + finding.hint


@pytest.mark.parametrize("sizes", [{"min_size": 20, "max_size": 10}, {"min_size": 0}])
def test_a_maximum_below_the_size_or_of_zero_is_found(sizes: dict[str, Any]) -> None:
    [finding] = static(pool(**sizes))
    assert finding.id == "abs_orm_app.E005"
    assert f"min_size is {sizes['min_size']}" in finding.message
    assert f"max_size is {sizes.get('max_size', 0)}" in finding.message


@pytest.mark.parametrize("value", ["yes", 20, [4]])
def test_a_pool_must_be_a_dict_or_true(value: Any) -> None:
    assert ids(static(facts(OPTIONS={"pool": value}))) == ["E005"]


@pytest.mark.parametrize(
    ("given", "number", "named"),
    [
        ({"release": "transactions"}, "E005", "['release'] is 'transactions'"),
        ({"reset": None}, "E005", "['reset'] is None"),
        ({"leak_seconds": "60"}, "E005", "['leak_seconds'] is '60'"),
        ({"leak_seconds": 0}, "E005", "['leak_seconds'] is 0"),
        ({"leak_seconds": Decimal(9)}, "E005", "['leak_seconds'] is Decimal('9')"),
        ({"release": "Transaction"}, "E005", "which is not 'transaction'"),
        ({"mode": "nul"}, "E005", "['mode'] is 'nul'"),
        ({"relase": "transaction"}, "E004", "'relase' (did you mean 'release'?)"),
        ("transaction", "E005", "ABS_ORM_APP is of type str"),
    ],
)
def test_a_mistake_in_our_own_key_is_found(given: Any, number: str, named: str) -> None:
    """The first request would fail, or the key would have no effect."""
    for options in ({"pool": True}, {}):
        [finding] = entry_findings(facts(OPTIONS=options, ABS_ORM_APP=given))
        assert finding.number == number
        assert named in finding.message


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("OPTION", "OPTIONS"),
        ("CONN_HEALTH_CHECK", "CONN_HEALTH_CHECKS"),
        ("ABS_ORM_AP", "ABS_ORM_APP"),
    ],
)
def test_a_mistyped_key_of_the_entry_is_found(given: str, meant: str) -> None:
    [finding] = entry_findings(facts(OURS, **{given: {}}))
    assert finding.number == "W001"
    assert f"{given!r}; did you mean {meant!r}?" in finding.message


def test_keys_of_other_packages_and_of_other_engines_are_no_finding() -> None:
    assert entry_findings(facts(POOL_OPTIONS={}, SCHEMA="x", TEST_CHARSET="utf8")) == []
    assert entry_findings(facts(**SQLITE, OPTION={})) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPTIONS", None),
        ("OPTIONS", "pool"),
        ("OPTIONS", ["pool"]),
        ("CONN_MAX_AGE", "60"),
        ("CONN_HEALTH_CHECKS", "false"),
        ("ATOMIC_REQUESTS", "false"),
    ],
)
def test_a_value_of_the_wrong_type_is_found(name: str, value: Any) -> None:
    """Django would fail at the first query, or take "false" for true."""
    [finding] = entry_findings(database := facts(**{name: value}))
    assert finding.number == "E005"
    assert finding.message.startswith(f"{name} is of type ")
    assert adoption_findings([database]) == [] or name != "OPTIONS"


def test_a_max_age_that_is_a_text_is_said_once() -> None:
    """As from `os.environ.get("CONN_MAX_AGE", "0")`."""
    given = facts(OPTIONS={"pool": True}, CONN_MAX_AGE="0")
    assert ids([*static(given), *entry_findings(given)]) == ["E005"]


def test_an_engine_without_a_pool_is_found() -> None:
    [finding] = static(facts(**SQLITE, OPTIONS={"pool": True}))
    assert finding.id == "abs_orm_app.E006"
    assert "django.db.backends.sqlite3" in finding.message


@pytest.mark.parametrize("name", ["open", "kwargs", "configure"])
@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_a_parameter_that_the_engine_sets_is_found(engine: str, name: str) -> None:
    [finding] = static(pool(engine, **{name: None}))
    assert finding.id == "abs_orm_app.E007"
    assert repr(name) in finding.message


def test_our_engine_names_its_pool_and_djangos_does_not() -> None:
    assert ids(static(pool(OURS, name="mine"))) == ["E007"]
    assert static(pool(STOCK, name="mine")) == []


def test_the_project_may_set_check_with_our_engine_and_in_django_6_1() -> None:
    assert static(pool(OURS, check=None)) == []
    [finding] = static(pool(STOCK, check=None))
    assert finding.id == "abs_orm_app.E007"
    assert "'check'" in finding.message
    installed = replace(INSTALLED, check_is_free=True)
    assert static(pool(STOCK, check=None), installed) == []


def test_an_unknown_variable_is_a_warning_with_a_suggestion() -> None:
    found = unknown_variables({"DB_POOL_SISE": "DB_POOL_SIZE", "DB_POOL_X": None})
    assert ids(found) == ["W001", "W001"]
    assert "DB_POOL_SISE; did you mean DB_POOL_SIZE?" in found[0].message


def test_a_name_that_would_command_a_terminal_is_harmless() -> None:
    (found,) = unknown_variables({"DB_POOL_SIZ\x1b[2J": "DB_POOL_SIZE"})
    assert "DB_POOL_SIZ [2J; did you mean" in found.message
    with pytest.raises(SettingsError) as error:
        database_from_env(environ={"DB_USER": "app", "DB_NAM\x1bE": "shop"})
    assert "DB_NAM E is set: did you mean DB_NAME?" in str(error.value)
