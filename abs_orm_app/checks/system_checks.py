"""Registers the rules as Django's system checks."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.core.checks import CheckMessage, Tags, register

from abs_orm_app.checks.finding import Finding
from abs_orm_app.checks.without_server import deployment_findings, settings_findings
from abs_orm_app.facts.databases import configured_databases

TAG = "abs_orm_app"


def register_checks() -> None:
    register(check_settings, TAG)
    register(check_deployment, TAG, deploy=True)
    # Without TAG: with it, Django 6.1 connects for `check --tag abs_orm_app`.
    register(check_servers, Tags.database)


def check_settings(**_: Any) -> list[CheckMessage]:
    return _messages(settings_findings(configured_databases()))


def check_deployment(**_: Any) -> list[CheckMessage]:
    return _messages(deployment_findings(configured_databases()))


def check_servers(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Check the servers of these aliases; `check --database` and `migrate` call this."""
    if not databases:
        return []
    # Imported here because it takes time, and the other checks run before every command.
    from abs_orm_app.checks.collect import ask_servers

    return _messages(ask_servers(configured_databases(databases)))


def _messages(found: Iterable[Finding]) -> list[CheckMessage]:
    return [
        CheckMessage(
            finding.level,
            finding.message,
            hint=f"{finding.hint} ({finding.explained_by})",
            obj=f"DATABASES[{finding.alias!r}]" if finding.alias else None,
            id=finding.id,
        )
        for finding in found
    ]
