"""Rules on when a connection is held: what `DB_POOL_RELEASE` gains, and what takes it away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.checks.fixes import set_one
from abs_orm_app.config.texts import counted
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts

MOSTLY = 0.5  # the share of the connections in use from which on they are mostly idle


def static_lease_findings(databases: Iterable[Configured]) -> list[Finding]:
    """Findings on the settings alone."""
    return [finding for database in databases for finding in atomic_requests(database)]


def lease_findings(reports: Iterable[Report]) -> list[Finding]:
    """Findings on what was seen of each alias with a pool of this app."""
    rules = (idle_while_others_wait, server_side_cursors_off)
    return [
        finding
        for report in reports
        if report.configured.pools and report.configured.hardened
        for rule in rules
        for finding in rule(report)
    ]


def atomic_requests(database: Configured) -> Iterator[Finding]:
    if database.hardened and database.atomic_requests and _release(database) == "transaction":
        yield new_finding(
            "I003",
            "ATOMIC_REQUESTS makes each request one transaction, which keeps its connection: with"
            " it, DB_POOL_RELEASE=transaction gains nothing for views.",
            "Use atomic() where it is needed, or exempt the views that wait for other services"
            " with @transaction.non_atomic_requests.",
            database.alias,
        )


def idle_while_others_wait(report: Report) -> Iterator[Finding]:
    database, usage = report.configured, report.usage
    if usage is None or _release(database) != "request":
        return
    if usage.waited and usage.unused > MOSTLY * usage.in_use:
        yield new_finding(
            "W005",
            f"{counted(usage.waited, 'request')} waited for a connection in the last"
            f" {usage.seconds:.0f} s, while on average {usage.unused:.1f} of the"
            f" {usage.in_use:.1f} connections in use were idle, in no transaction: their requests"
            " did something else.",
            "Return each connection after the query or transaction that needs it:",
            database.alias,
            fix=set_one(database, "release", "transaction"),
        )


def server_side_cursors_off(report: Report) -> Iterator[Finding]:
    database, server = report.configured, report.server
    if not isinstance(server, ServerFacts) or server.pooler or database.server_side_cursors:
        return
    yield new_finding(
        "I004",
        "DISABLE_SERVER_SIDE_CURSORS is on, so QuerySet.iterator() reads all rows into memory at"
        " once. Only a pooler between Django and the server needs that, and none was found.",
        "Remove it, or silence this check: loops that do something slow with each row then hold"
        " their connection until they end.",
        database.alias,
    )


def _release(database: Configured) -> object:
    return database.value("release")
