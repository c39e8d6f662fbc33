"""The rules for an alias that reaches its server through a pooler, or should."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from abs_orm_app.capacity.budget import allowance
from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.pooler import PoolerFacts
from abs_orm_app.facts.server import ServerFacts

DOCS = "docs/pgbouncer.md"


@dataclass(frozen=True, kw_only=True)
class Through:
    """An alias, the pooler that it goes through, and the server behind it."""

    database: Configured
    pooler: PoolerFacts
    server: ServerFacts
    timeout: float | None  # seconds, that a client should wait for a connection; None: not known

    @property
    def by_transaction(self) -> bool:
        return self.pooler.pool_mode == "transaction"

    @property
    def name(self) -> str:
        return self.pooler.software


def pooler_findings(aliases: Iterable[Through]) -> list[Finding]:
    """What does not go together with the pooler."""
    rules = (
        transactions_refused,
        cursors_by_transaction,
        prepared_by_transaction,
        options_lost,
        role_lost,
        two_pools,
        pinned_connections,
        another_timeout,
        more_than_the_server_has,
        no_session,
    )
    return [finding for alias in aliases for rule in rules for finding in rule(alias)]


def no_pooler(database: Configured) -> Finding:
    """The mode says that there is a pooler, and the server itself answers."""
    return new_finding(
        "W036",
        "DB_POOL_MODE is pgbouncer, but the server itself answers: nothing pools, and every request"
        " opens a connection of its own.",
        f"Give the address of PgBouncer ({DOCS} says how to set one up), or set DB_POOL_MODE=pool.",
        database.alias,
    )


def transactions_refused(alias: Through) -> Iterator[Finding]:
    if alias.pooler.pool_mode == "statement":
        yield new_finding(
            "E031",
            f"{alias.name} is in statement pooling, which refuses transactions: atomic() fails.",
            "Set pool_mode = transaction in pgbouncer.ini.",
            alias.database.alias,
        )


def cursors_by_transaction(alias: Through) -> Iterator[Finding]:
    if alias.by_transaction and alias.database.server_side_cursors:
        yield new_finding(
            "W031",
            f"{alias.name} is in transaction pooling, where a server-side cursor ends with its"
            " transaction: QuerySet.iterator() outside of atomic() fails with 'cursor does not"
            " exist'.",
            "Set DB_POOL_MODE=pgbouncer, or DISABLE_SERVER_SIDE_CURSORS to True.",
            alias.database.alias,
        )


def prepared_by_transaction(alias: Through) -> Iterator[Finding]:
    if not (alias.by_transaction and alias.database.prepares):
        return
    console = alias.pooler.console
    if console and int(console.config.get("max_prepared_statements", 0)):
        return
    known = "does not keep track of" if console else "may not keep track of"
    yield new_finding(
        "E032" if console else "W032",
        f"OPTIONS['prepare_threshold'] is set, and {alias.name}, in transaction pooling, {known}"
        " prepared statements: they are missing in the next transaction, or there already.",
        "Remove prepare_threshold, or set max_prepared_statements in pgbouncer.ini"
        " (PgBouncer 1.21 or newer).",
        alias.database.alias,
    )


def options_lost(alias: Through) -> Iterator[Finding]:
    if names := [name for name in alias.pooler.lost if name != "role"]:
        yield new_finding(
            "W033",
            f"The options of the connection set {', '.join(names)}, and a session through"
            f" {alias.name} does not have it.",
            "Let the server set it (ALTER ROLE ... SET ...), or PgBouncer: connect_query, as"
            " `manage.py pgbouncer_ini` writes it.",
            alias.database.alias,
        )


def role_lost(alias: Through) -> Iterator[Finding]:
    if alias.by_transaction and "role" in alias.pooler.lost:
        yield new_finding(
            "W034",
            "assume_role is set once by each client connection; in transaction pooling, its next"
            " transaction may have another session, and another client this one.",
            "Let PgBouncer set the role (connect_query, as `manage.py pgbouncer_ini` writes it),"
            " or log in as that role.",
            alias.database.alias,
        )


def two_pools(alias: Through) -> Iterator[Finding]:
    if alias.database.pools and alias.by_transaction:
        yield new_finding(
            "W035",
            f"Two pools, one behind the other: this process's, and {alias.name}'s. A request waits"
            " in two queues, and what the pool here counts and recycles are not connections of the"
            " server.",
            f"Set DB_POOL_MODE=pgbouncer, or connect to the server itself ({DOCS} compares them).",
            alias.database.alias,
        )


def pinned_connections(alias: Through) -> Iterator[Finding]:
    keeps = alias.database.pools or alias.database.mode == "persistent"
    if keeps and alias.pooler.pool_mode == "session":
        yield new_finding(
            "W035",
            f"{alias.name} is in session pooling, and this project keeps its connections: each has"
            " one of the server's for as long as it is open, as if there were no pooler.",
            "Set pool_mode = transaction in pgbouncer.ini and DB_POOL_MODE=pgbouncer; or leave it,"
            " if the pooler is there for something else than to pool.",
            alias.database.alias,
        )


def another_timeout(alias: Through) -> Iterator[Finding]:
    console = alias.pooler.console
    if console is None or alias.timeout is None or "query_wait_timeout" not in console.config:
        return
    theirs = float(console.config["query_wait_timeout"])
    if not math.isclose(theirs, alias.timeout, rel_tol=1e-4):  # it shows six digits
        wait = f"for {theirs:g} s" if theirs else "without end"
        yield new_finding(
            "W037",
            f"{alias.name} lets a client wait {wait} (query_wait_timeout), and the pool timeout"
            f" (DB_POOL_TIMEOUT) is {alias.timeout:g} s.",
            f"Set query_wait_timeout = {alias.timeout:g} in pgbouncer.ini, or DB_POOL_TIMEOUT.",
            alias.database.alias,
        )


def more_than_the_server_has(alias: Through) -> Iterator[Finding]:
    console = alias.pooler.console
    if console is None:
        return
    limit, wanted = allowance(alias.server), console.pool_size + console.reserve_pool
    wanted = min(wanted, console.most or wanted)
    if wanted > limit.connections:
        yield new_finding(
            "W038",
            f"{alias.name} may open {wanted} connections for this database, but {limit.why}.",
            f"Set default_pool_size + reserve_pool_size to {limit.connections} or less in"
            " pgbouncer.ini, or raise the limit.",
            alias.database.alias,
        )


def no_session(alias: Through) -> Iterator[Finding]:
    if alias.by_transaction:
        yield new_finding(
            "I031",
            f"{alias.name} is in transaction pooling. What lives in a session ends, or goes on for"
            " another client, when a transaction ends: SET, LISTEN, pg_advisory_lock(), temporary"
            " tables.",
            "Use SET LOCAL, pg_advisory_xact_lock() and ON COMMIT DROP; LISTEN on a connection to"
            " the server itself.",
            alias.database.alias,
        )
