"""Rules for production: what works, and should not be so there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.environment import PLACEHOLDER_PASSWORDS
from abs_orm_app.facts.databases import NEVER, Configured, is_local
from abs_orm_app.facts.web_server import WebServer

LONGEST_RECYCLE = 3600  # seconds


def deploy_findings(databases: Iterable[Configured]) -> list[Finding]:
    """What works, and should not be in production."""
    rules = (
        pooling_off,
        pre_ping_off,
        recycle_off_or_long,
        embedded_database,
        tls_not_required,
        placeholder_password,
    )
    return [
        finding
        for database in databases
        if database.vendor == "postgresql"
        for rule in rules
        for finding in rule(database)
    ]


def pooling_off(database: Configured) -> Iterator[Finding]:
    if database.mode == "null":
        yield new_finding(
            "W011",
            "Every request opens a connection of its own.",
            "Set DB_POOL_MODE=pool; or pgbouncer, if a PgBouncer does the pooling.",
            database.alias,
        )


def pre_ping_off(database: Configured) -> Iterator[Finding]:
    if database.mode in ("pool", "persistent") and not database.health_checks:
        yield new_finding(
            "W012",
            "Pre-ping is off: after a restart of the server, requests get dead connections.",
            "Set DB_POOL_PRE_PING=true (CONN_HEALTH_CHECKS).",
            database.alias,
        )


def recycle_off_or_long(database: Configured) -> Iterator[Finding]:
    recycle = database.value("recycle")
    if not isinstance(recycle, int | float) or NEVER < recycle <= LONGEST_RECYCLE:
        return
    what = "off" if recycle == NEVER else f"{recycle:g} seconds"
    yield new_finding(
        "W013",
        f"Recycle is {what}: connections grow old, and so does the memory of their sessions; "
        "after a failover they stay where they are.",
        f"Set DB_POOL_RECYCLE={LONGEST_RECYCLE} or less.",
        database.alias,
    )


def embedded_database(database: Configured) -> Iterator[Finding]:
    if database.embedded:
        yield new_finding(
            "W014",
            "The database is the embedded one, which is for development and tests.",
            "Set DATABASE_URL to a server of your own.",
            database.alias,
        )


def tls_not_required(database: Configured) -> Iterator[Finding]:
    demanding = database.sslmode in ("require", "verify-ca", "verify-full")
    remote = [host for host in database.host.split(",") if not is_local(host)]
    if remote and not demanding:
        yield new_finding(
            "W015",
            f"Connections to {', '.join(remote)} may go without TLS: "
            f"sslmode is {database.sslmode or 'prefer'}.",
            "Add ?sslmode=verify-full (or at least require) to DATABASE_URL.",
            database.alias,
        )


def placeholder_password(database: Configured) -> Iterator[Finding]:
    if database.password in PLACEHOLDER_PASSWORDS:
        yield new_finding(
            "W016",
            "The password is the placeholder of .env.example.",
            "Change the role's password on the server, and set DB_PASSWORD or DATABASE_URL.",
            database.alias,
        )


def web_findings(databases: Iterable[Configured], web: WebServer) -> list[Finding]:
    """What does not go together with how the project is served."""
    return [
        finding
        for database in databases
        if database.vendor == "postgresql"
        for rule in (worker_killed_first, persistent_under_asgi)
        for finding in rule(database, web)
    ]


def worker_killed_first(database: Configured, web: WebServer) -> Iterator[Finding]:
    timeout = database.value("timeout")
    if web.worker_timeout is None or not (database.pools and isinstance(timeout, int | float)):
        return
    if timeout >= web.worker_timeout:
        yield new_finding(
            "W017",
            f"A request may wait for a connection for {timeout:g} s, and gunicorn kills its worker"
            f" after {web.worker_timeout:g} s: the error that says why never comes.",
            "Set DB_POOL_TIMEOUT lower (3 to 5 seconds suit a web page), or gunicorn's --timeout"
            " higher.",
            database.alias,
        )


def persistent_under_asgi(database: Configured, web: WebServer) -> Iterator[Finding]:
    if web.asgi and database.mode == "persistent":
        yield new_finding(
            "W018",
            f"Each thread keeps a connection of its own, and under ASGI ({web.asgi}) threads"
            " come and go: connections pile up, and are not used again.",
            "Set DB_POOL_MODE=pool.",
            database.alias,
        )
