"""Rules on how long connections are held: what `DB_POOL_RELEASE` gains, and what undoes it."""

from collections.abc import Iterator

from abs_orm_app.checks.finding import Finding, new_finding, of_alias
from abs_orm_app.checks.fixes import set_one
from abs_orm_app.config.texts import counted
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts

MOSTLY = 0.5  # W005 if a larger share of the connections in use is idle


@of_alias
def lease_findings(database: Configured, report: Report) -> Iterator[Finding]:
    """Check what was observed of an alias with a pool of this app."""
    if not (database.pools and database.hardened):
        return
    usage, server = report.usage, report.server
    request = database.value("release") == "request"
    if request and usage and usage.waited and usage.unused > MOSTLY * usage.in_use:
        yield new_finding(
            "W005",
            f"{counted(usage.waited, 'request')} waited for a connection in the last"
            f" {usage.seconds:.0f} s, while on average {usage.unused:.1f} of the"
            f" {usage.in_use:.1f} connections in use were idle, in no transaction: their requests"
            " did something else.",
            "Return each connection after the query or transaction that needs it:",
            fix=set_one(database, "release", "transaction"),
        )
    direct = isinstance(server, ServerFacts) and not server.pooler
    if direct and not database.server_side_cursors:
        yield new_finding(
            "I004",
            "DISABLE_SERVER_SIDE_CURSORS is on, so QuerySet.iterator() reads all rows into memory"
            " at once. Only a pooler between Django and the server needs that, and none was found.",
            "Remove it, or silence this check: loops that do something slow with each row then hold"
            " their connection until they end.",
        )
