"""Rules for production: settings that work, but should not be used there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from abs_orm_app.checks.adoption_rules import has_unused_pool
from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.checks.fixes import set_mode, set_one
from abs_orm_app.environment import NEVER, PLACEHOLDER_PASSWORDS
from abs_orm_app.facts.databases import Configured, is_local

LONGEST_RECYCLE = 3600  # seconds


def deploy_findings(databases: Iterable[Configured]) -> list[Finding]:
    """Findings on the PostgreSQL aliases."""
    rules = (
        pooling_off,
        pre_ping_off,
        recycle_off_or_long,
        embedded_database,
        tls_not_required,
        any_server_will_do,
        placeholder_password,
        open_secret_file,
    )
    return [
        finding
        for database in databases
        if database.vendor == "postgresql"
        for rule in rules
        for finding in rule(database)
    ]


def pooling_off(database: Configured) -> Iterator[Finding]:
    if database.mode == "null" and not has_unused_pool(database):  # which is W006
        yield new_finding(
            "W011",
            "There is no pool: every request opens a connection and closes it.",
            "Turn the pool on (or choose the mode `pgbouncer`, if PgBouncer pools):",
            database.alias,
            fix=set_mode(database, "pool"),
        )


def pre_ping_off(database: Configured) -> Iterator[Finding]:
    if database.mode in ("pool", "persistent") and not database.health_checks:
        yield new_finding(
            "W012",
            "Pre-ping is off: after a restart of the server, requests get stale connections.",
            "Turn it on:",
            database.alias,
            fix=set_one(database, "pre_ping", True),
        )


def recycle_off_or_long(database: Configured) -> Iterator[Finding]:
    recycle = database.value("recycle")
    if not isinstance(recycle, int | float) or NEVER < recycle <= LONGEST_RECYCLE:
        return
    what = "off" if recycle == NEVER else f"{recycle:g} seconds"
    yield new_finding(
        "W013",
        f"Recycle is {what}: sessions use more and more memory on the server, and after a failover"
        " they stay with the old server.",
        "Set it to an hour or less:",
        database.alias,
        fix=set_one(database, "recycle", LONGEST_RECYCLE),
    )


def embedded_database(database: Configured) -> Iterator[Finding]:
    if database.embedded:
        yield new_finding(
            "W014",
            "The database is the embedded server, which is for development and tests.",
            "Set the address of your PostgreSQL server:",
            database.alias,
            fix=f"{database.prefix}DATABASE_URL=postgresql://USER:PASSWORD@HOST:5432/DATABASE",
        )


def tls_not_required(database: Configured) -> Iterator[Finding]:
    demanding = database.sslmode in ("require", "verify-ca", "verify-full")
    remote = [host for host in database.host.split(",") if not is_local(host)]
    if remote and not demanding:
        yield new_finding(
            "W015",
            f"Connections to {', '.join(remote)} may be unencrypted:"
            f" sslmode is {database.sslmode or 'prefer'}.",
            "Add this parameter to the address (`require` encrypts, but does not verify the"
            " server):",
            database.alias,
            fix="?sslmode=verify-full",
        )


def any_server_will_do(database: Configured) -> Iterator[Finding]:
    keeps = database.mode in ("pool", "persistent")
    remote = any(not is_local(host) for host in database.host.split(","))
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
            database.alias,
            fix="?target_session_attrs=read-write",
        )


def placeholder_password(database: Configured) -> Iterator[Finding]:
    if database.password in PLACEHOLDER_PASSWORDS:
        yield new_finding(
            "W016",
            "The password is the placeholder from .env.example.",
            "Change the role's password on the server, then set DB_PASSWORD or DATABASE_URL.",
            database.alias,
        )


def open_secret_file(database: Configured) -> Iterator[Finding]:
    for variable in database.open_files:
        yield new_finding(
            "W019",
            f"Every account on this machine can read the file that {variable} names.",
            "Let only the account of the application read it:",
            database.alias,
            fix=f'chmod 400 "${variable}"',
        )
