"""Packages that treat an engine by its name: what is found, and what is not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings

from abs_orm_app.checks.package_rules import PACKAGES, package_findings
from abs_orm_app.checks.without_server import settings_findings
from abs_orm_app.facts.databases import configured_databases
from tests.support.projects import OURS, STOCK, database

APPS = [package.app for package in PACKAGES]


def found(engine: str, **given: Any) -> list[str]:
    with database({"ENGINE": engine, "NAME": "shop"}) as alias:
        findings = package_findings(configured_databases([alias]), APPS, SimpleNamespace(**given))
        return [finding.hint for finding in findings]


def test_each_package_gets_the_line_to_add() -> None:
    assert found(OURS) == [
        "Add to the settings: DBBACKUP_CONNECTOR_MAPPING ="
        ' {"abs_orm_app.backends.postgresql": "dbbackup.db.postgresql.PgDumpBinaryConnector"}',
        "Add to the settings: CACHALOT_ADDITIONAL_SUPPORTED_DATABASES ="
        ' {"abs_orm_app.backends.postgresql"}',
        "Add to the settings: DJANGO_EXTENSIONS_RESET_DB_POSTGRESQL_ENGINES ="
        ' ["abs_orm_app.backends.postgresql"]',
    ]


def test_with_these_lines_nothing_is_found() -> None:
    given: dict[str, Any] = {}
    for hint in found(OURS):
        exec(hint.partition(": ")[2], given)  # noqa: S102
    assert found(OURS, **given) == []


def test_the_engine_of_postgis_gets_the_connector_of_postgis() -> None:
    # Not by an alias with that engine: it would load GDAL, which not every machine has.
    with database({"ENGINE": OURS, "NAME": "shop"}) as alias:
        (facts,) = configured_databases([alias])
    postgis = replace(facts, engine="abs_orm_app.backends.postgis")
    assert "PgDumpGisConnector" in package_findings([postgis], APPS, SimpleNamespace())[0].hint


@pytest.mark.parametrize(
    "given",
    [
        {"CACHALOT_DATABASES": "all_databases"},
        {"DBBACKUP_CONNECTORS": {"other": {"CONNECTOR": "shop.Connector"}}},
    ],
)
def test_another_setting_that_is_enough_counts(given: dict[str, Any]) -> None:
    assert len(found(OURS, **given)) == len(PACKAGES) - 1


def test_djangos_own_engine_is_known_to_all() -> None:
    assert found(STOCK) == []


def test_the_checks_report_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by override_settings: it would import the package, which is not installed here.
    monkeypatch.setattr(settings, "INSTALLED_APPS", [*settings.INSTALLED_APPS, "dbbackup"])
    with database({"ENGINE": OURS, "NAME": "shop"}) as alias:
        ids = [finding.id for finding in settings_findings(configured_databases([alias]))]
    assert "abs_orm_app.W003" in ids
