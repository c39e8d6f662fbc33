"""Rules for production: settings that work, but should not be used there."""

from collections.abc import Iterator

from abs_orm_app.checks.adoption_rules import has_unused_pool
from abs_orm_app.checks.finding import Finding, new_finding, of_alias
from abs_orm_app.checks.fixes import set_mode, set_one
from abs_orm_app.environment import NEVER, PLACEHOLDER_PASSWORDS
from abs_orm_app.facts.databases import Configured, is_local

LONGEST_RECYCLE = 3600  # seconds


@of_alias
def deploy_findings(database: Configured) -> Iterator[Finding]:
    """Check for settings that work, but should not be used in production."""
    if database.vendor == "postgresql":
        yield from _settings(database)
        yield from _address(database)


def _settings(database: Configured) -> Iterator[Finding]:
    if database.mode == "null" and not has_unused_pool(database):  # W006 reports that
        yield new_finding(
            "W011",
            "There is no pool: every request opens a connection and closes it.",
            "Turn the pool on (or choose the mode `pgbouncer`, if PgBouncer pools):",
            fix=set_mode(database, "pool"),
        )
    if database.mode in ("pool", "persistent") and not database.health_checks:
        yield new_finding(
            "W012",
            "Pre-ping is off: after a restart of the server, requests get stale connections.",
            "Turn it on:",
            fix=set_one(database, "pre_ping", True),
        )
    recycle = database.value("recycle")
    if isinstance(recycle, int | float) and not NEVER < recycle <= LONGEST_RECYCLE:
        what = "off" if recycle == NEVER else f"{recycle:g} seconds"
        yield new_finding(
            "W013",
            f"Recycle is {what}: sessions use more and more memory on the server, and after a"
            " failover they stay with the old server.",
            "Set it to an hour or less:",
            fix=set_one(database, "recycle", LONGEST_RECYCLE),
        )


def _address(database: Configured) -> Iterator[Finding]:
    if database.embedded:
        yield new_finding(
            "W014",
            "The database is the embedded server, which is for development and tests.",
            "Set the address of your PostgreSQL server:",
            fix=f"{database.prefix}DATABASE_URL=postgresql://USER:PASSWORD@HOST:5432/DATABASE",
        )
    remote = [host for host in database.host.split(",") if not is_local(host)]
    if remote and database.sslmode not in ("require", "verify-ca", "verify-full"):
        yield new_finding(
            "W015",
            f"Connections to {', '.join(remote)} may be unencrypted:"
            f" sslmode is {database.sslmode or 'prefer'}.",
            "Add this parameter to the address (`require` encrypts, but does not verify the"
            " server):",
            fix="?sslmode=verify-full",
        )
    keeps = database.mode in ("pool", "persistent")
    if keeps and remote and database.written and not database.target_session_attrs:
        effect = (
            "requests that write fail until the address leads to the new primary"
            if database.hardened and database.mode == "pool"
            else "connections to it are kept, and requests that write fail until they expire"
        )
        yield new_finding(
            "W020",
            f"The address of this alias may lead to a standby after a failover: {effect}.",
            "To connect only to a server that accepts writes, and let requests wait for one, add"
            " this parameter to the address:",
            fix="?target_session_attrs=read-write",
        )
    if database.password in PLACEHOLDER_PASSWORDS:
        yield new_finding(
            "W016",
            "The password is the placeholder from .env.example.",
            "Change the role's password on the server, then set DB_PASSWORD or DATABASE_URL.",
        )
    for variable in database.open_files:
        yield new_finding(
            "W019",
            f"Every account on this machine can read the file that {variable} names.",
            "Let only the account of the application read it:",
            fix=f'chmod 400 "${variable}"',
        )
