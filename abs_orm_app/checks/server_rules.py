"""More rules: the settings beside the server's timeouts, and beside the web server's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from django.db import DEFAULT_DB_ALIAS

from abs_orm_app.checks.settings_rules import Finding, is_local, new_finding
from abs_orm_app.facts.databases import NEVER, Configured
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.web_server import WebServer

LONGEST_SILENCE = 3600  # seconds, before a server asks whether a client is still there


def session_findings(answers: Iterable[tuple[Configured, ServerFacts]]) -> list[Finding]:
    """What the server does with the sessions of an alias."""
    rules = (
        idle_sessions_end,
        keepalives_off,
        takes_no_writes,
        statements_never_end,
        transactions_idle_for_ever,
        pauses_end_transactions,
        gone_clients_stay,
    )
    return [
        finding
        for database, server in answers
        for rule in rules
        for finding in rule(database, server)
    ]


def idle_sessions_end(database: Configured, server: ServerFacts) -> Iterator[Finding]:
    limit = server.settings.get("idle_session_timeout", 0)
    if not limit or server.pooler or not (database.pools or database.mode == "persistent"):
        return
    recycle = database.value("recycle")
    # Django's own pool looks at the age of a connection when it is returned, not before its use.
    looks = database.hardened or not database.pools
    if looks and isinstance(recycle, int | float) and NEVER < recycle <= limit:
        return
    then = (
        "what was idle for that long is replaced at its next use, which waits for it"
        if database.health_checks
        else "requests get connections that are dead"
    )
    yield new_finding(
        "W022",
        f"The server ends sessions that are idle for {limit:g} s (idle_session_timeout), and the"
        f" connections here are kept for longer: {then}.",
        f"Turn it off for this role: ALTER ROLE {server.role} SET idle_session_timeout = 0"
        + (f"; or set DB_POOL_RECYCLE to {limit:.0f} or less." if looks and limit >= 1 else "."),
        database.alias,
    )


def keepalives_off(database: Configured, server: ServerFacts) -> Iterator[Finding]:
    if _is_remote(server) and not database.keepalives:
        yield new_finding(
            "W023",
            f"TCP keepalives are off for connections to {server.address}: who waits for an answer"
            " of a machine that is gone waits for ever, and a firewall may drop what is idle.",
            "Remove keepalives=0 from OPTIONS or DATABASE_URL.",
            database.alias,
        )


def takes_no_writes(database: Configured, server: ServerFacts) -> Iterator[Finding]:
    if database.alias != DEFAULT_DB_ALIAS or not (server.in_recovery or server.read_only):
        return
    why = "is a standby" if server.in_recovery else "makes transactions read only for this role"
    yield new_finding(
        "W024",
        f"The server {why}, and this is the alias that Django writes to.",
        "Give the address of the primary; of several hosts, ?target_session_attrs=read-write in"
        " DATABASE_URL takes the one that writes."
        if server.in_recovery
        else "Set default_transaction_read_only to off for the role or the database, or silence"
        " this where nothing is written.",
        database.alias,
    )


def statements_never_end(database: Configured, server: ServerFacts) -> Iterator[Finding]:
    if not server.settings.get("statement_timeout"):
        yield new_finding(
            "I021",
            "A query may run for ever (statement_timeout is off), also when the request that sent"
            " it was given up long ago.",
            f"ALTER ROLE {server.role} SET statement_timeout = '15s', or what suits your queries;"
            " give migrations a role of their own.",
            database.alias,
        )


def transactions_idle_for_ever(database: Configured, server: ServerFacts) -> Iterator[Finding]:
    if not server.settings.get("idle_in_transaction_session_timeout"):
        each = " ATOMIC_REQUESTS makes each request one." * database.atomic_requests
        yield new_finding(
            "I022",
            "A transaction that does nothing may stay open for ever"
            f" (idle_in_transaction_session_timeout is off), with its locks.{each}",
            f"ALTER ROLE {server.role} SET idle_in_transaction_session_timeout = '60s'.",
            database.alias,
        )


def pauses_end_transactions(database: Configured, server: ServerFacts) -> Iterator[Finding]:
    limit = server.settings.get("idle_in_transaction_session_timeout", 0)
    timeout = database.value("timeout")
    if not (database.atomic_requests and isinstance(timeout, int | float)):
        return
    if 0 < limit <= timeout:
        yield new_finding(
            "I023",
            f"ATOMIC_REQUESTS makes each request one transaction, and the server ends the session"
            f" of one that pauses for {limit:g} s (idle_in_transaction_session_timeout): a request"
            f" that waits for another alias's pool may pause for {timeout:g} s.",
            "Set the timeout above DB_POOL_TIMEOUT, or use atomic() where it is needed, and not"
            " around calls of other services.",
            database.alias,
        )


def gone_clients_stay(database: Configured, server: ServerFacts) -> Iterator[Finding]:
    idle = server.settings.get("tcp_keepalives_idle", 0)
    if not _is_remote(server) or server.pooler or 0 < idle <= LONGEST_SILENCE:
        return
    after = f"only after {idle:g} s" if idle else "never"
    yield new_finding(
        "I024",
        f"The server looks {after} whether a client that says nothing is still there"
        " (tcp_keepalives_idle): until then, the sessions of a machine that is gone keep their"
        " connections and their locks.",
        f"ALTER ROLE {server.role} SET tcp_keepalives_idle = 60.",
        database.alias,
    )


def _is_remote(server: ServerFacts) -> bool:
    if server.address.startswith(("/", "@")):
        return False
    return not is_local(server.address.rpartition(":")[0])


# Beside the web server


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
