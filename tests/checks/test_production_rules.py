"""The rules for production. Nothing here connects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abs_orm_app.checks.production_rules import deploy_findings
from abs_orm_app.environment import database_from_env
from abs_orm_app.facts.databases import configured
from tests.support.aliases import facts, from_env, ids
from tests.support.projects import SQLITE, database


def test_a_production_like_database_has_no_finding() -> None:
    url = "postgresql://app:s3cret@db.example/shop?sslmode=verify-full"
    assert deploy_findings(from_env(DATABASE_URL=url)) == []


def test_no_pool_in_production_is_found_unless_there_is_a_pooler() -> None:
    assert ids(deploy_findings(from_env(DB_POOL_MODE="null"))) == ["W011"]
    assert deploy_findings(from_env(DB_POOL_MODE="pgbouncer")) == []
    assert deploy_findings(from_env(DB_POOL_MODE="persistent")) == []


@pytest.mark.parametrize("mode", ["pool", "persistent"])
def test_pre_ping_off_is_found(mode: str) -> None:
    found = deploy_findings(from_env(DB_POOL_MODE=mode, DB_POOL_PRE_PING="off"))
    assert ids(found) == ["W012"]


@pytest.mark.parametrize("mode", ["pool", "persistent"])
@pytest.mark.parametrize(("recycle", "said"), [("-1", "off"), ("7200", "7200 seconds")])
def test_recycle_off_or_above_an_hour_is_found(mode: str, recycle: str, said: str) -> None:
    [finding] = deploy_findings(from_env(DB_POOL_MODE=mode, DB_POOL_RECYCLE=recycle))
    assert finding.id == "abs_orm_app.W013"
    assert f"Recycle is {said}" in finding.message


def test_an_embedded_database_is_found() -> None:
    entry = database_from_env(environ={"DATABASE_URL": "postgresql:///shop"})
    entry["ABS_ORM_APP"]["embedded"] = ".pgdata"
    with database(entry) as alias:
        assert ids(deploy_findings(configured(alias))) == ["W014"]


@pytest.mark.parametrize("mode", [None, "disable", "allow", "prefer"])
@pytest.mark.parametrize("host", ["db.example", "10.0.0.7", "localhost,db.example", "::2"])
def test_a_remote_host_without_required_tls_is_found(host: str, mode: str | None) -> None:
    options = {"pool": True, **({"sslmode": mode} if mode else {})}
    [finding] = deploy_findings(facts(HOST=host, OPTIONS=options))
    assert finding.id == "abs_orm_app.W015"
    assert f"sslmode is {mode or 'prefer'}" in finding.message


@pytest.mark.parametrize(
    "host", ["", "localhost", "127.0.0.1", "127.8.8.8", "::1", "/run/pg", "@x"]
)
def test_a_local_host_needs_no_tls(host: str) -> None:
    assert deploy_findings(facts(HOST=host, OPTIONS={"pool": True})) == []


def test_tls_may_be_required_by_libpqs_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "require")
    assert deploy_findings(facts(HOST="db.example", OPTIONS={"pool": True})) == []


@pytest.mark.parametrize("mode", ["pool", "persistent"])
def test_an_address_that_may_lead_to_a_standby_is_found(mode: str) -> None:
    url = "postgresql://app:s3cret@db.example/shop?sslmode=verify-full"
    written = replace(from_env(DATABASE_URL=url, DB_POOL_MODE=mode), written=True)
    [finding] = deploy_findings(written)
    assert finding.number == "W020"
    assert "?target_session_attrs=read-write" in finding.hint


@pytest.mark.parametrize(
    ("changes", "environ"),
    [
        ({"written": False}, {}),
        ({"target_session_attrs": "read-write"}, {}),
        ({"target_session_attrs": "any"}, {}),
        ({"host": "localhost"}, {}),
        ({}, {"DB_POOL_MODE": "pgbouncer"}),
    ],
)
def test_who_reads_or_has_said_what_is_wanted_needs_no_more(
    changes: dict[str, Any], environ: dict[str, str]
) -> None:
    url = "postgresql://app:s3cret@db.example/shop?sslmode=verify-full"
    alias = replace(from_env(DATABASE_URL=url, **environ), **{"written": True, **changes})
    assert deploy_findings(alias) == []


def test_the_placeholder_password_is_found() -> None:
    url = "postgresql://app:change-me@/shop"
    assert ids(deploy_findings(from_env(DATABASE_URL=url))) == ["W016"]


@pytest.mark.parametrize(("mode", "found"), [(0o644, True), (0o640, False), (0o400, False)])
@pytest.mark.parametrize("variable", ["DATABASE_URL_FILE", "DB_PASSWORD_FILE"])
def test_a_secret_file_that_everybody_can_read_is_found(
    variable: str, mode: int, found: bool, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("postgresql://app@/shop" if "URL" in variable else "s3cret")
    secret.chmod(mode)
    address = {} if "URL" in variable else {"DB_NAME": "shop"}
    with database(database_from_env(environ={variable: str(secret), **address})) as alias:
        findings = deploy_findings(configured(alias))
    assert ids(findings) == (["W019"] if found else [])
    assert all(variable in finding.message for finding in findings)


def test_other_databases_are_not_checked() -> None:
    assert deploy_findings(facts(**SQLITE)) == []
