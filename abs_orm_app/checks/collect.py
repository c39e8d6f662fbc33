"""Collects the findings on databases, with or without answers from their servers."""

from collections.abc import Iterable, Sequence
from contextlib import suppress

from django.conf import settings
from django.core.checks import INFO

from abs_orm_app.capacity.budget import Answers, budgets, demands
from abs_orm_app.checks.budget_rules import budget_findings
from abs_orm_app.checks.finding import Finding
from abs_orm_app.checks.lease_rules import lease_findings
from abs_orm_app.checks.pooler_rules import pooler_findings
from abs_orm_app.checks.server_rules import server_not_asked, session_findings
from abs_orm_app.checks.without_server import deployment_findings, settings_findings
from abs_orm_app.environment import SettingsError, pool_processes
from abs_orm_app.facts.connection_test import probe
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts

TIMEOUT = 5.0  # seconds for each server that a system check asks


def ask_servers(databases: Iterable[Configured]) -> list[Finding]:
    """Check the server of each alias; one that does not answer is a finding of level INFO.

    Other findings of that level are left to check_pool, as `migrate` runs this before it starts.
    """
    answers = []
    unanswered = []
    for database in databases:
        if database.pools or database.mode == "pgbouncer":
            server, test, _ = probe(database, TIMEOUT)
            failure = server if isinstance(server, Failure) else test.failure
            if isinstance(server, ServerFacts):
                answers.append((database, server))
            elif failure:
                unanswered.append(server_not_asked(database.alias, failure))
    found = server_findings(answers)
    found += [finding for answer in answers for finding in session_findings(*answer)]
    serious = [finding for finding in found if finding.level > INFO]
    return [*unanswered, *serious]


def all_findings(reports: Sequence[Report], processes: int | None = None) -> list[Finding]:
    """Apply every rule to existing reports; silenced findings are left out.

    processes: how many processes have these pools; None: as the environment says.

    The rules of `check --deploy`, and findings of level INFO on the server's timeouts, are for
    production: they are included while DEBUG is off.
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
    for report in reports:
        found += lease_findings(report.configured, report)
    found += server_findings(answers, processes)
    of_sessions = (finding for answer in answers for finding in session_findings(*answer))
    found += [finding for finding in of_sessions if finding.level > INFO or not settings.DEBUG]
    return [finding for finding in found if finding.id not in settings.SILENCED_SYSTEM_CHECKS]


def server_findings(answers: Answers, processes: int | None = None) -> list[Finding]:
    """Check the limits of the servers, and the poolers, that answered."""
    found: list[Finding] = []
    for database, server in answers:
        found += pooler_findings(database, server.pooler)
    with suppress(SettingsError):  # `settings_findings` reports it
        shared = budgets(demands(answers), processes or pool_processes())
        found += budget_findings(shared, {database.alias: database for database, _ in answers})
    return found
