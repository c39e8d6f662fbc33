"""Detects a pooler, such as PgBouncer, between this process and the server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from abs_orm_app.config.printable import printable
from abs_orm_app.facts.timeout import run_with_timeout

PoolMode = Literal["session", "transaction", "statement"]
# Opens another connection like the first; the arguments change its parameters.
Connect = Callable[..., Any]

CONSOLE = "pgbouncer"  # the database that is PgBouncer's admin console
PATIENCE = 2.0  # seconds for a second client to get a server connection
LOOKS = 3  # for the pool mode; on a busy pooler, one may see nothing

# The parameters of SHOW CONFIG that matter to a client.
_WATCHED = (
    "default_pool_size",
    "reserve_pool_size",
    "max_client_conn",
    "max_prepared_statements",  # PgBouncer 1.21
    "query_wait_timeout",
    "server_lifetime",
    "server_check_query",
    "server_check_delay",
    "server_login_retry",
)


@dataclass(frozen=True, kw_only=True)
class Console:
    """What PgBouncer's console says about itself and one database."""

    version: str  # "1.18.0"
    config: Mapping[str, str]  # those of _WATCHED that this version has; times in seconds

    # SHOW POOLS, all roles together
    clients_active: int
    clients_waiting: int
    longest_wait: float  # seconds, now
    servers_active: int
    servers_idle: int

    # SHOW DATABASES
    pool_size: int  # server connections for each role
    reserve_pool: int  # more of them, when clients wait
    most: int | None  # for all roles together; None: no limit


@dataclass(frozen=True, kw_only=True)
class PoolerFacts:
    """A pooler as a client finds it."""

    software: str  # "PgBouncer", or "A pooler" that does not identify itself
    pool_mode: PoolMode | None  # None: unknown
    console: Console | None  # None: this role may not use it, or there is none
    # The names in `options` and `assume_role` that are not set in a new session.
    lost: tuple[str, ...]


def is_pooled(connection: Any) -> bool:
    """Return True if a pooler, and not the server, accepted the connection.

    A pooler has to invent the key with which a client cancels its queries; the process id of the
    session is part of that key.
    """
    return bool(_value(connection, "SELECT pg_backend_pid()") != connection.info.backend_pid)


def read_pooler(
    connection: Any, connect: Connect, session: Mapping[str, str] | None = None
) -> PoolerFacts | None:
    """Describe the pooler behind an open connection in autocommit mode; None: there is none.

    session: the settings that the session should have. Raises the driver's `Error`.
    """
    if not is_pooled(connection):
        return None
    lost = tuple(_lost(connection, session or {}))
    software, console, pool_mode = _ask_console(connection, connect)
    return PoolerFacts(
        software=software,
        console=console,
        # This comes last: without an answer, the connection is unusable.
        pool_mode=pool_mode or _see_pool_mode(connection, connect),
        lost=lost,
    )


def _value(connection: Any, query: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


# The console


def _ask_console(connection: Any, connect: Connect) -> tuple[str, Console | None, PoolMode | None]:
    try:
        with closing(connect(dbname=CONSOLE)) as console:
            console.autocommit = True
            return "PgBouncer", *_read_console(console, connection.info.dbname)
    except connection.Error as error:
        # PgBouncer's answer to a role that is in neither admin_users nor stats_users.
        return ("PgBouncer" if "not allowed" in str(error) else "A pooler"), None, None
    except (LookupError, StopIteration, TypeError, ValueError):
        # Other software has a similar console with other columns; and of two PgBouncers on one
        # port, this may be the other one, which does not know the database yet.
        return "A pooler", None, None


def _read_console(console: Any, name: str) -> tuple[Console, PoolMode | None]:
    pools = [pool for pool in _show(console, "POOLS") if pool["database"] == name]
    database = next(row for row in _show(console, "DATABASES") if row["name"] == name)
    config = {row["key"]: row["value"] for row in _show(console, "CONFIG")}
    facts = Console(
        version=printable(re.sub("^PgBouncer ", "", _value(console, "SHOW VERSION"))),
        config={name: printable(config[name]) for name in _WATCHED if name in config},
        clients_active=_sum(pools, "cl_active"),
        clients_waiting=_sum(pools, "cl_waiting"),
        longest_wait=max((_wait(pool) for pool in pools), default=0.0),
        servers_active=_sum(pools, "sv_active"),
        servers_idle=_sum(pools, "sv_idle", "sv_used"),  # used: idle, and due for a check
        pool_size=int(database["pool_size"]),
        # It has another name since PgBouncer 1.24.
        reserve_pool=int(database.get("reserve_pool") or database.get("reserve_pool_size") or 0),
        most=int(database["max_connections"]) or None,
    )
    return facts, next((pool["pool_mode"] for pool in pools), None)


def _show(console: Any, what: str) -> list[dict[str, Any]]:
    with console.cursor() as cursor:
        cursor.execute(f"SHOW {what}")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _sum(pools: Iterable[Mapping[str, Any]], *names: str) -> int:
    return sum(int(pool[name]) for pool in pools for name in names)


def _wait(pool: Mapping[str, Any]) -> float:
    return int(pool["maxwait"]) + int(pool["maxwait_us"]) / 1e6


# Without it


def _see_pool_mode(first: Any, connect: Connect) -> PoolMode | None:
    """Find the pool mode by comparing which session of the server each of two clients has."""
    try:
        return run_with_timeout(PATIENCE, lambda: _compare(first, connect))
    except (TimeoutError, first.Error):
        # There is no second connection: all are in use, or there are too many clients.
        return None


def _compare(first: Any, connect: Connect) -> PoolMode:
    """Only in session pooling does a client keep its session while another has a transaction.

    Otherwise the other client gets the idle session, or the first one gets a new session.
    """
    pid = "SELECT pg_backend_pid()"
    with closing(connect()) as second:
        second.autocommit = True
        for _ in range(LOOKS):
            before = _value(first, pid)
            try:
                _run(second, "BEGIN")
            except second.Error as error:
                if "statement pooling" in str(error):
                    return "statement"
                raise
            if _value(second, pid) == before or _value(first, pid) != before:
                return "transaction"
            _run(second, "ROLLBACK")
    return "session"


def _lost(connection: Any, wanted: Mapping[str, str]) -> Iterator[str]:
    """Yield the settings that a new session should have, but does not have."""
    for name, value in wanted.items():
        # set_config returns the value in the server's spelling; `true` limits it to this statement.
        query = "SELECT current_setting(%s, true), set_config(%s, %s, true)"
        with connection.cursor() as cursor:
            cursor.execute(query, (name, name, value))
            found, normalized = cursor.fetchone()
        if found != normalized:
            yield name


def _run(connection: Any, query: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(query)
