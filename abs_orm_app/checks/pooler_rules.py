"""Rules on an alias whose connections go through a pooler, or should."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from abs_orm_app.capacity.budget import allowance
from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.checks.fixes import set_mode
from abs_orm_app.config.explain import explain
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.pooler import PoolerFacts
from abs_orm_app.facts.server import ServerFacts


@dataclass(frozen=True, kw_only=True)
class PooledAlias:
    """An alias, the pooler that it connects to, and the server behind the pooler."""

    database: Configured
    pooler: PoolerFacts
    server: ServerFacts
    timeout: float | None  # seconds that a client should wait for a connection; None: not known

    @property
    def by_transaction(self) -> bool:
        return self.pooler.pool_mode == "transaction"

    @property
    def name(self) -> str:
        return self.pooler.software


def pooler_findings(aliases: Iterable[PooledAlias]) -> list[Finding]:
    """Findings on settings that do not fit the pooler."""
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
    """The mode expects a pooler, but the server itself answers."""
    return new_finding(
        "W036",
        "DB_POOL_MODE is pgbouncer, but the server itself answers: nothing pools, and every request"
        " opens its own connection.",
        f"Set the address of PgBouncer (`{explain('pgbouncer')}` shows how to set one up), or use"
        " a pool in this process:",
        database.alias,
        fix=set_mode(database, "pool"),
    )


def transactions_refused(alias: PooledAlias) -> Iterator[Finding]:
    if alias.pooler.pool_mode == "statement":
        yield new_finding(
            "E031",
            f"{alias.name} uses statement pooling, which refuses transactions: atomic() fails.",
            "Set the pool mode in pgbouncer.ini:",
            alias.database.alias,
            fix="pool_mode = transaction",
        )


def cursors_by_transaction(alias: PooledAlias) -> Iterator[Finding]:
    if alias.by_transaction and alias.database.server_side_cursors:
        yield new_finding(
            "W031",
            f"{alias.name} uses transaction pooling, where a server-side cursor ends with its"
            " transaction: QuerySet.iterator() outside of atomic() fails with 'cursor does not"
            " exist'.",
            "Set DISABLE_SERVER_SIDE_CURSORS to True, or the mode:",
            alias.database.alias,
            fix=set_mode(alias.database, "pgbouncer"),
        )


def prepared_by_transaction(alias: PooledAlias) -> Iterator[Finding]:
    if not (alias.by_transaction and alias.database.prepares):
        return
    console = alias.pooler.console
    if console and int(console.config.get("max_prepared_statements", 0)):
        return
    known = "does not track" if console else "may not track"
    yield new_finding(
        "E032" if console else "W032",
        f"OPTIONS['prepare_threshold'] is set, but {alias.name}, in transaction pooling, {known}"
        " prepared statements: in the next transaction they are missing, or exist already.",
        "Remove prepare_threshold, or let PgBouncer (1.21 or newer) track them in pgbouncer.ini:",
        alias.database.alias,
        fix="max_prepared_statements = 200",
    )


def options_lost(alias: PooledAlias) -> Iterator[Finding]:
    if names := [name for name in alias.pooler.lost if name != "role"]:
        yield new_finding(
            "W033",
            f"The connection options set {', '.join(names)}, but sessions through {alias.name} do"
            " not have them.",
            "Set them on the server (ALTER ROLE ... SET ...), or with PgBouncer's connect_query,"
            " which this command writes:",
            alias.database.alias,
            fix="manage.py pgbouncer_ini",
        )


def role_lost(alias: PooledAlias) -> Iterator[Finding]:
    if alias.by_transaction and "role" in alias.pooler.lost:
        yield new_finding(
            "W034",
            "assume_role is set once for each client connection. In transaction pooling, the next"
            " transaction may run in a session without that role, and another client's with it.",
            "Log in as that role, or set it with PgBouncer's connect_query, which this command"
            " writes:",
            alias.database.alias,
            fix="manage.py pgbouncer_ini",
        )


def two_pools(alias: PooledAlias) -> Iterator[Finding]:
    if alias.database.pools and alias.by_transaction:
        yield new_finding(
            "W035",
            f"There are two pools: one in this process, and {alias.name} behind it. A request waits"
            " in two queues, and the pool here counts and recycles connections to the pooler, not"
            " to the server.",
            f"Connect to the server itself (`{explain('pgbouncer')}` compares both), or use the"
            " pooler alone:",
            alias.database.alias,
            fix=set_mode(alias.database, "pgbouncer"),
        )


def pinned_connections(alias: PooledAlias) -> Iterator[Finding]:
    keeps = alias.database.pools or alias.database.mode == "persistent"
    if keeps and alias.pooler.pool_mode == "session":
        yield new_finding(
            "W035",
            f"{alias.name} uses session pooling, and this project keeps its connections open: each"
            " of them occupies a server connection, as if there were no pooler.",
            "Set `pool_mode = transaction` in pgbouncer.ini (or ignore this, if the pooler is not"
            " there to pool), and the mode:",
            alias.database.alias,
            fix=set_mode(alias.database, "pgbouncer"),
        )


def another_timeout(alias: PooledAlias) -> Iterator[Finding]:
    console = alias.pooler.console
    if console is None or alias.timeout is None or "query_wait_timeout" not in console.config:
        return
    theirs = float(console.config["query_wait_timeout"])
    if not math.isclose(theirs, alias.timeout, rel_tol=1e-4):  # PgBouncer prints six digits
        wait = f"for {theirs:g} s" if theirs else "without a limit"
        yield new_finding(
            "W037",
            f"{alias.name} lets a client wait {wait} (query_wait_timeout), but the pool timeout"
            f" (DB_POOL_TIMEOUT) is {alias.timeout:g} s.",
            "Change DB_POOL_TIMEOUT, or set the same time in pgbouncer.ini:",
            alias.database.alias,
            fix=f"query_wait_timeout = {alias.timeout:g}",
        )


def more_than_the_server_has(alias: PooledAlias) -> Iterator[Finding]:
    console = alias.pooler.console
    if console is None:
        return
    limit, wanted = allowance(alias.server), console.pool_size + console.reserve_pool
    wanted = min(wanted, console.most or wanted)
    if wanted > limit.connections:
        yield new_finding(
            "W038",
            f"{alias.name} may open {wanted} connections for this database, but {limit.why}.",
            "Raise the server's limit, or lower default_pool_size + reserve_pool_size to"
            f" {limit.connections} or less in pgbouncer.ini:",
            alias.database.alias,
            fix=f"default_pool_size = {max(limit.connections - console.reserve_pool, 1)}",
        )


def no_session(alias: PooledAlias) -> Iterator[Finding]:
    if alias.by_transaction:
        yield new_finding(
            "I031",
            f"{alias.name} uses transaction pooling. What belongs to a session (SET, LISTEN,"
            " pg_advisory_lock(), temporary tables) is lost, or reaches another client, when the"
            " transaction ends.",
            "Use SET LOCAL, pg_advisory_xact_lock() and ON COMMIT DROP; for LISTEN, connect to the"
            " server itself.",
            alias.database.alias,
        )
