"""Rules on what the server says: its limit of connections, its timeouts, its role."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from django.db import DEFAULT_DB_ALIAS

from abs_orm_app.capacity.budget import Budget
from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.facts.databases import NEVER, Configured, is_local
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.server import ServerFacts

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


def budget_findings(budgets: Iterable[Budget]) -> list[Finding]:
    """One for each limit that all the processes together can pass."""
    return [
        pool_size_too_large(budget) if budget.at_rest > budget.limit.connections
        else overflow_too_large(budget)
        for budget in budgets
        if budget.at_peak > budget.limit.connections
    ]  # fmt: skip


def pool_size_too_large(budget: Budget) -> Finding:
    return new_finding(
        "E021",
        f"{budget.arithmetic}; {budget.limit.why}. Even without overflow it is {budget.at_rest}.",
        _how_to_fit(budget),
        _only_alias(budget),
    )


def overflow_too_large(budget: Budget) -> Finding:
    return new_finding(
        "W021",
        f"{budget.arithmetic}; {budget.limit.why}. With all of the overflow in use, "
        "some processes will be refused.",
        _how_to_fit(budget),
        _only_alias(budget),
    )


def _how_to_fit(budget: Budget) -> str:
    fits, aliases = budget.per_process, [repr(demand.alias) for demand in budget.demands]
    of_all = f" of {' and '.join(aliases)} together" if len(aliases) > 1 else ""
    smaller = (
        f"Lower DB_POOL_SIZE + DB_MAX_OVERFLOW{of_all} to {fits} or less in each process, run"
        if fits >= len(aliases)
        else "Run"
    )
    return f"{smaller} fewer processes, raise the limit, or put PgBouncer in between."


def _only_alias(budget: Budget) -> str | None:
    return budget.demands[0].alias if len(budget.demands) == 1 else None


def server_not_asked(alias: str, failure: Failure) -> Finding:
    """The server did not answer: no error, because no check may fail for that."""
    return new_finding(
        "I001",
        f"The server could not be asked about its limits: {failure.cause}",
        failure.hint,
        alias,
    )
