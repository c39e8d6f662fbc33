"""All findings on some databases: those that need no server, and those on what servers answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.conf import settings
from django.core.checks import INFO

from abs_orm_app.capacity.budget import Answers, budgets, demands
from abs_orm_app.checks.finding import Finding
from abs_orm_app.checks.pooler_rules import Through, no_pooler, pooler_findings
from abs_orm_app.checks.server_rules import budget_findings, server_not_asked, session_findings
from abs_orm_app.checks.without_server import deployment_findings, settings_findings
from abs_orm_app.environment import SettingsError, pool_processes
from abs_orm_app.facts.databases import Configured, pool_settings
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.report import Report, probe
from abs_orm_app.facts.server import ServerFacts

TIMEOUT = 5.0  # seconds for each server that a check asks


def ask_servers(databases: Iterable[Configured]) -> list[Finding]:
    """Ask the server of each, and find; a server that does not answer is only to be known."""
    answers = []
    unanswered = []
    for database in databases:
        if database.pools or database.mode == "pgbouncer":
            server, test = probe(database, TIMEOUT)
            failure = server if isinstance(server, Failure) else test.failure
            if isinstance(server, ServerFacts):
                answers.append((database, server))
            elif failure:
                unanswered.append(server_not_asked(database.alias, failure))
    # What is only to be known is for check_pool, not for every `migrate`.
    found = [*server_findings(answers), *session_findings(answers)]
    serious = [finding for finding in found if finding.level > INFO]
    return [*unanswered, *serious]


def all_findings(reports: Sequence[Report], processes: int | None = None) -> list[Finding]:
    """What the checks would find, from reports that are there already, without what is silenced.

    processes: that have these pools; None: what the environment says.

    Those of `check --deploy`, and what is only to be known of the server's timeouts, are for
    production: they are in it where DEBUG is off.
    """
    databases = [report.configured for report in reports]
    answers = [
        (report.configured, report.server)
        for report in reports
        if isinstance(report.server, ServerFacts)
    ]
    found = settings_findings(databases)
    if not settings.DEBUG:
        found += deployment_findings(databases)
    found += server_findings(answers, processes)
    found += [
        finding
        for finding in session_findings(answers)
        if finding.level > INFO or not settings.DEBUG
    ]
    return [finding for finding in found if finding.id not in settings.SILENCED_SYSTEM_CHECKS]


def server_findings(answers: Answers, processes: int | None = None) -> list[Finding]:
    """What the settings of the aliases mean to the servers, and the poolers, that answered."""
    return [*_budget_findings(answers, processes), *_pooler_findings(answers)]


def _budget_findings(answers: Answers, processes: int | None) -> list[Finding]:
    try:
        processes = processes or pool_processes()
    except SettingsError:
        return []  # `settings_findings` has it
    return budget_findings(budgets(demands(answers), processes))


def _pooler_findings(answers: Answers) -> list[Finding]:
    through, found = [], []
    for database, server in answers:
        if server.pooler:
            timeout = _timeout(database)
            through.append(
                Through(database=database, pooler=server.pooler, server=server, timeout=timeout)
            )
        elif database.mode == "pgbouncer":
            found.append(no_pooler(database))
    return [*found, *pooler_findings(through)]


def _timeout(database: Configured) -> float | None:
    try:
        return pool_settings(database).timeout
    except (SettingsError, ValueError):
        return None
