"""Rules on the web server: pool settings that do not fit how the project is served."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.checks.fixes import set_mode, set_one
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.web_server import WebServer

SHORT_TIMEOUT = 5  # seconds; long enough for a burst, short enough for a visitor


def web_findings(databases: Iterable[Configured], web: WebServer) -> list[Finding]:
    """Findings on the PostgreSQL aliases."""
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
            f"A request waits up to {timeout:g} s for a connection, but gunicorn kills its worker"
            f" after {web.worker_timeout:g} s: the error that names the cause is never logged.",
            "Raise gunicorn's --timeout, or lower the pool timeout (3 to 5 s suit a web page):",
            database.alias,
            fix=set_one(database, "timeout", SHORT_TIMEOUT),
        )


def persistent_under_asgi(database: Configured, web: WebServer) -> Iterator[Finding]:
    if web.asgi and database.mode == "persistent":
        yield new_finding(
            "W018",
            "In persistent mode each thread keeps its own connection. Under ASGI"
            f" ({web.asgi}) threads come and go, so unused connections pile up.",
            "Use a pool:",
            database.alias,
            fix=set_mode(database, "pool"),
        )
