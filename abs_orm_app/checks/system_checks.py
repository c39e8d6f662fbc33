"""The findings as Django's system checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import django
from django.core.checks import CheckMessage, Tags, register

from abs_orm_app.checks import settings_rules
from abs_orm_app.checks.settings_rules import Finding
from abs_orm_app.environment import SettingsError, pool_processes, unknown_pool_variables
from abs_orm_app.facts.databases import Configured, configured_databases, pool_parameters

TAG = "abs_orm_app"


def register_checks() -> None:
    register(check_settings, TAG)
    register(check_deployment, TAG, deploy=True)
    # Without TAG: Django 6.1 would run it, and connect, for `check --tag abs_orm_app`.
    register(check_servers, Tags.database)


def check_settings(**_: Any) -> list[CheckMessage]:
    return _messages(settings_findings(configured_databases()))


def check_deployment(**_: Any) -> list[CheckMessage]:
    return _messages(deployment_findings(configured_databases()))


def check_servers(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Ask the servers of these aliases, as `check --database` and `migrate` want it."""
    if not databases:
        return []
    # Only here: it takes its time to import, and the other checks are part of every command.
    from abs_orm_app.checks.collect import ask_servers

    return _messages(ask_servers(configured_databases(databases)))


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
    from abs_orm_app.checks.server_rules import web_findings
    from abs_orm_app.facts.web_server import web_server

    return [*settings_rules.deploy_findings(databases), *web_findings(databases, web_server())]


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


def _messages(found: Iterable[Finding]) -> list[CheckMessage]:
    return [
        CheckMessage(
            finding.level,
            finding.message,
            hint=f"{finding.hint} ({finding.guide})",
            obj=f"DATABASES[{finding.alias!r}]" if finding.alias else None,
            id=finding.id,
        )
        for finding in found
    ]
