"""Collects the findings that need no server: on the settings and the environment."""

import os
from collections.abc import Sequence

import django
from django.conf import settings

from abs_orm_app.checks import adoption_rules, package_rules, settings_rules
from abs_orm_app.checks.finding import Finding
from abs_orm_app.environment import SettingsError, pool_processes, unknown_variables
from abs_orm_app.facts.databases import (
    Configured,
    configured_databases,
    pool_parameters,
    variables_read,
)


def settings_findings(databases: Sequence[Configured]) -> list[Finding]:
    """Report unread variables, settings that cannot work, and a pool that is not used."""
    prefixes = {"", *(database.prefix for database in databases)}
    unknown = unknown_variables(prefixes=sorted(prefixes))
    found = settings_rules.unknown_variables(unknown)
    for database in databases:
        found += settings_rules.entry_findings(database)
        if database.pool:  # else psycopg_pool may not be needed
            found += settings_rules.static_findings(database, _installed())
    found += adoption_rules.adoption_findings(databases)
    if (read := variables_read()) is None:
        found += adoption_rules.unread_settings(configured_databases(), os.environ)
    else:
        found += adoption_rules.ungiven_settings(read, os.environ)
    found += package_rules.package_findings(databases, settings.INSTALLED_APPS, settings)
    try:
        pool_processes()
    except SettingsError as error:
        found.append(settings_rules.wrong_processes(str(error)))
    return found


def deployment_findings(databases: Sequence[Configured]) -> list[Finding]:
    # Imported here because it takes time, and the other checks run before every command.
    from abs_orm_app.checks.production_rules import deploy_findings

    return [finding for database in databases for finding in deploy_findings(database)]


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
