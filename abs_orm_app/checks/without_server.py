"""Findings that need no server: from the settings, the environment and the web server."""

from __future__ import annotations

from collections.abc import Sequence

import django

from abs_orm_app.checks import settings_rules
from abs_orm_app.checks.finding import Finding
from abs_orm_app.environment import SettingsError, pool_processes, unknown_pool_variables
from abs_orm_app.facts.databases import Configured, pool_parameters


def settings_findings(databases: Sequence[Configured]) -> list[Finding]:
    """What the settings and the environment give away by themselves."""
    prefixes = {"", *(database.prefix for database in databases)}
    found = settings_rules.unknown_variables(unknown_pool_variables(prefixes=sorted(prefixes)))
    if any(database.pool for database in databases):
        found += settings_rules.static_findings(databases, _installed())
    try:
        pool_processes()
    except SettingsError as error:
        found.append(settings_rules.wrong_processes(str(error)))
    return found


def deployment_findings(databases: Sequence[Configured]) -> list[Finding]:
    """What works, and should not be in production."""
    # Only here: they take their time to import, and the other checks are part of every command.
    from abs_orm_app.checks.production_rules import deploy_findings, web_findings
    from abs_orm_app.facts.web_server import web_server

    return [*deploy_findings(databases), *web_findings(databases, web_server())]


def _installed() -> settings_rules.Installed:
    return settings_rules.Installed(
        psycopg=_version("psycopg"),
        psycopg_pool=_version("psycopg_pool"),
        pool_parameters=tuple(pool_parameters()),
        check_is_free=django.VERSION >= (6, 1),
    )


def _version(package: str) -> str | None:
    try:
        return str(__import__(package).__version__)
    except ImportError:
        return None
