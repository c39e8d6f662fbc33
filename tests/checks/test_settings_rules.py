"""The rules, on entries of DATABASES and made-up servers; nothing here connects."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abs_orm_app.capacity.budget import Budget, Demand, Limit
from abs_orm_app.checks import server_rules, settings_rules
from abs_orm_app.checks.finding import GUIDE, Finding
from abs_orm_app.checks.production_rules import deploy_findings
from abs_orm_app.checks.settings_rules import Installed, static_findings
from abs_orm_app.environment import database_from_env
from abs_orm_app.facts.databases import Configured, configured, pool_parameters
from abs_orm_app.facts.failure import Failure
from tests.support.projects import OURS, SQLITE, STOCK, database

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = Installed(
    psycopg="3.2.1",
    psycopg_pool="3.2.0",
    pool_parameters=tuple(pool_parameters()),
    check_is_free=False,
)


def facts(engine: str = OURS, **changes: Any) -> Configured:
    given = {"ENGINE": engine, "NAME": "shop", "CONN_HEALTH_CHECKS": True, **changes}
    with database(given) as alias:
        return configured(alias)


def pool(engine: str = OURS, **parameters: Any) -> Configured:
    return facts(engine, OPTIONS={"pool": parameters or True})


def static(database: Configured, installed: Installed = INSTALLED) -> list[Finding]:
    return static_findings([database], installed)


def ids(found: list[Finding]) -> list[str]:
    return [finding.id.removeprefix("abs_orm_app.") for finding in found]


def from_env(**environ: str) -> Configured:
    environ = {"DATABASE_URL": "postgresql://app:s3cret@/shop", **environ}
    with database(database_from_env(environ=environ)) as alias:
        return configured(alias)


# Settings


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


def test_what_the_environment_writes_has_no_finding() -> None:
    for mode in ("pool", "persistent", "pgbouncer", "null"):
        assert static(from_env(DB_POOL_MODE=mode, DB_POOL_RECYCLE="-1")) == []


@pytest.mark.parametrize("age", [60, None])
def test_a_pool_and_persistent_connections_exclude_each_other(age: int | None) -> None:
    [finding] = static(facts(OPTIONS={"pool": True}, CONN_MAX_AGE=age))
    assert finding.id == "abs_orm_app.E001"
    assert f"CONN_MAX_AGE={age}" in finding.message
    assert finding.alias == "other"


@pytest.mark.parametrize("version", [None, "3.1.19", "2.9.10", "3.1.dev1"])
def test_the_drivers_must_be_there_and_new_enough(version: str | None) -> None:
    installed = replace(INSTALLED, psycopg=version, psycopg_pool=version)
    assert ids(static(pool(), installed)) == ["E002", "E003"]


@pytest.mark.parametrize("version", ["3.2", "3.2.dev1", "3.10.0", "4.0rc1"])
def test_later_drivers_are_new_enough(version: str) -> None:
    assert static(pool(), replace(INSTALLED, psycopg=version, psycopg_pool=version)) == []


def test_the_least_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = dict(re.split(r"(?:\[.*\])?>=", bound) for bound in project["dependencies"])
    assert bounds["psycopg"] == ".".join(map(str, settings_rules.LEAST_PSYCOPG))
    assert bounds["psycopg-pool"] == ".".join(map(str, settings_rules.LEAST_PSYCOPG_POOL))


def test_a_mistyped_parameter_is_found_with_what_was_meant() -> None:
    [finding] = static(pool(min_sise=4))
    assert finding.id == "abs_orm_app.E004"
    assert "'min_sise' (did you mean 'min_size'?)" in finding.message


def test_without_psycopg_pool_its_parameters_are_not_judged() -> None:
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
        ("num_workers", 0),
        ("reconnect_timeout", -1),
    ],
)
def test_an_impossible_value_is_found(name: str, value: Any) -> None:
    [finding] = static(pool(**{"max_size": 9, name: value}))
    assert finding.id == "abs_orm_app.E005"
    assert name in finding.message


def test_what_is_no_number_is_not_shown() -> None:
    [finding] = static(pool(timeout="s3cret"))
    assert "s3cret" not in finding.message + finding.hint


@pytest.mark.parametrize("sizes", [{"min_size": 20, "max_size": 10}, {"min_size": 0}])
def test_a_maximum_below_the_size_or_of_none_is_found(sizes: dict[str, Any]) -> None:
    [finding] = static(pool(**sizes))
    assert finding.id == "abs_orm_app.E005"
    assert f"min_size is {sizes['min_size']}" in finding.message
    assert f"max_size is {sizes.get('max_size', 0)}" in finding.message


@pytest.mark.parametrize("value", ["yes", 20, [4]])
def test_a_pool_must_be_a_dict_or_true(value: Any) -> None:
    assert ids(static(facts(OPTIONS={"pool": value}))) == ["E005"]


def test_an_engine_without_a_pool_is_found() -> None:
    [finding] = static(facts(**SQLITE, OPTIONS={"pool": True}))
    assert finding.id == "abs_orm_app.E006"
    assert "django.db.backends.sqlite3" in finding.message


@pytest.mark.parametrize("name", ["open", "kwargs", "configure", "check"])
@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_a_parameter_that_the_engine_sets_is_found(engine: str, name: str) -> None:
    [finding] = static(pool(engine, **{name: None}))
    assert finding.id == "abs_orm_app.E007"
    assert repr(name) in finding.message


def test_our_engine_names_its_pool_and_djangos_does_not() -> None:
    assert ids(static(pool(OURS, name="mine"))) == ["E007"]
    assert static(pool(STOCK, name="mine")) == []


def test_django_6_1_leaves_the_check_to_the_project() -> None:
    installed = replace(INSTALLED, check_is_free=True)
    assert static(pool(STOCK, check=None), installed) == []
    assert ids(static(pool(OURS, check=None), installed)) == ["E007"]


def test_an_unknown_variable_is_a_warning_with_what_was_meant() -> None:
    found = settings_rules.unknown_variables({"DB_POOL_SISE": "DB_POOL_SIZE", "DB_POOL_X": None})
    assert ids(found) == ["W001", "W001"]
    assert "DB_POOL_SISE; did you mean DB_POOL_SIZE?" in found[0].message


# Production


def test_a_production_like_database_has_no_finding() -> None:
    url = "postgresql://app:s3cret@db.example/shop?sslmode=verify-full"
    assert deploy_findings([from_env(DATABASE_URL=url)]) == []


def test_no_pool_in_production_is_found_and_a_pooler_is_one() -> None:
    assert ids(deploy_findings([from_env(DB_POOL_MODE="null")])) == ["W011"]
    assert deploy_findings([from_env(DB_POOL_MODE="pgbouncer")]) == []
    assert deploy_findings([from_env(DB_POOL_MODE="persistent")]) == []


@pytest.mark.parametrize("mode", ["pool", "persistent"])
def test_pre_ping_off_is_found(mode: str) -> None:
    found = deploy_findings([from_env(DB_POOL_MODE=mode, DB_POOL_PRE_PING="off")])
    assert ids(found) == ["W012"]


@pytest.mark.parametrize("mode", ["pool", "persistent"])
@pytest.mark.parametrize(("recycle", "said"), [("-1", "off"), ("7200", "7200 seconds")])
def test_recycle_off_or_above_an_hour_is_found(mode: str, recycle: str, said: str) -> None:
    [finding] = deploy_findings([from_env(DB_POOL_MODE=mode, DB_POOL_RECYCLE=recycle)])
    assert finding.id == "abs_orm_app.W013"
    assert f"Recycle is {said}" in finding.message


def test_an_embedded_database_is_found() -> None:
    entry = database_from_env(environ={"DATABASE_URL": "postgresql:///shop"})
    entry["ABS_ORM_APP"]["embedded"] = ".pgdata"
    with database(entry) as alias:
        assert ids(deploy_findings([configured(alias)])) == ["W014"]


@pytest.mark.parametrize("mode", [None, "disable", "allow", "prefer"])
@pytest.mark.parametrize("host", ["db.example", "10.0.0.7", "localhost,db.example", "::2"])
def test_a_remote_host_without_demanding_tls_is_found(host: str, mode: str | None) -> None:
    options = {"pool": True, **({"sslmode": mode} if mode else {})}
    [finding] = deploy_findings([facts(HOST=host, OPTIONS=options)])
    assert finding.id == "abs_orm_app.W015"
    assert f"sslmode is {mode or 'prefer'}" in finding.message


@pytest.mark.parametrize(
    "host", ["", "localhost", "127.0.0.1", "127.8.8.8", "::1", "/run/pg", "@x"]
)
def test_a_local_host_needs_no_tls(host: str) -> None:
    assert deploy_findings([facts(HOST=host, OPTIONS={"pool": True})]) == []


def test_tls_may_be_demanded_by_libpqs_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "require")
    assert deploy_findings([facts(HOST="db.example", OPTIONS={"pool": True})]) == []


def test_the_placeholder_password_is_found() -> None:
    url = "postgresql://app:change-me@/shop"
    assert ids(deploy_findings([from_env(DATABASE_URL=url)])) == ["W016"]


def test_other_databases_are_not_judged() -> None:
    assert deploy_findings([facts(**SQLITE)]) == []


# Servers


def budget(processes: int, limit: int = 97, aliases: tuple[str, ...] = ("default",)) -> Budget:
    demands = tuple(Demand(alias=alias, size=20, overflow=10) for alias in aliases)
    told = Limit(group=("one",), connections=limit, why=f"this role may open {limit} (...)")
    return Budget(processes=processes, demands=demands, limit=told)


def test_what_fits_has_no_finding() -> None:
    assert server_rules.budget_findings([budget(3)]) == []
    assert server_rules.budget_findings([budget(1, limit=30)]) == []


def test_overflow_that_does_not_fit_is_a_warning() -> None:
    [finding] = server_rules.budget_findings([budget(4)])
    assert finding.id == "abs_orm_app.W021"
    assert "4 processes x (20 + 10) for 'default' = 120 connections" in finding.message
    assert "this role may open 97" in finding.message
    assert "to 24 or less in each process" in finding.hint


def test_a_pool_size_that_does_not_fit_is_an_error() -> None:
    [finding] = server_rules.budget_findings([budget(5)])
    assert finding.id == "abs_orm_app.E021"
    assert "Even without overflow it is 100." in finding.message


def test_the_pools_of_several_aliases_are_told_to_fit_together() -> None:
    [finding] = server_rules.budget_findings([budget(2, aliases=("default", "reports"))])
    assert finding.hint.startswith(
        "Lower DB_POOL_SIZE + DB_MAX_OVERFLOW of 'default' and 'reports' together to 48 or less "
        "in each process, run fewer"
    )
    assert finding.alias is None


def test_several_aliases_are_not_told_to_share_less_than_one_connection_each() -> None:
    [finding] = server_rules.budget_findings([budget(97, aliases=("default", "reports"))])
    assert finding.hint.startswith("Run fewer processes")


def test_more_processes_than_connections_are_not_told_to_have_none_each() -> None:
    [finding] = server_rules.budget_findings([budget(100)])
    assert finding.hint.startswith("Run fewer processes")


def test_a_server_that_does_not_answer_is_no_error() -> None:
    finding = server_rules.server_not_asked(
        "default", Failure(cause="It is down.", hint="Start it.")
    )
    assert finding.id == "abs_orm_app.I001"


# Docs


def test_each_id_is_documented_and_each_documented_id_exists() -> None:
    files = Path(settings_rules.__file__).parent.glob("*_rules.py")
    source = "".join(file.read_text() for file in files)
    page = (ROOT / GUIDE).read_text()
    in_code = set(re.findall(r'"([EWI]\d{3})"', source))
    assert set(re.findall(r'<a id="([EWI]\d{3})"></a>', page)) == in_code
    assert set(re.findall(r"^### .*\b([EWI]\d{3})\b", page, re.MULTILINE)) == in_code
