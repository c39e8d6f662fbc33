"""Detects a pooler, such as PgBouncer, between this process and the server."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from abs_orm_app.facts.timeout import run_with_timeout

PoolMode = Literal["session", "transaction", "statement"]
Connect = Callable[[], Any]  # opens another connection like the first

SECOND_TIMEOUT = 2.0  # seconds for a second client to get a server connection
LOOKS = 3  # comparisons to find the pool mode; on a busy pooler, one may show nothing


@dataclass(frozen=True, kw_only=True)
class PoolerFacts:
    pool_mode: PoolMode | None  # None: unknown
    # Names of the settings from `options` and `assume_role` that the session lacks.
    lost: tuple[str, ...]


def is_pooled(connection: Any) -> bool:
    """Return True if a pooler, not the server, accepted the connection.

    A pooler invents the key that cancels a query, and the process id is part of that key.
    """
    return bool(_value(connection, "SELECT pg_backend_pid()") != connection.info.backend_pid)


def read_pooler(
    connection: Any, connect: Connect, session: Mapping[str, str] | None = None
) -> PoolerFacts | None:
    """Describe the pooler behind an open connection in autocommit mode; None if there is none.

    session: the settings that the session should have. Raises the driver's `Error`.
    """
    if not is_pooled(connection):
        return None
    lost = tuple(_lost(connection, session or {}))
    # The pool mode comes last: if it gets no answer, the connection is unusable.
    return PoolerFacts(pool_mode=_see_pool_mode(connection, connect), lost=lost)


def _value(connection: Any, query: str) -> Any:
    return connection.execute(query).fetchone()[0]


def _see_pool_mode(first: Any, connect: Connect) -> PoolMode | None:
    """Detect the pool mode by comparing which server session each of two clients has."""
    try:
        return run_with_timeout(SECOND_TIMEOUT, lambda: _compare(first, connect))
    except (TimeoutError, first.Error):
        # No second connection: all are in use, or there are too many clients.
        return None


def _compare(first: Any, connect: Connect) -> PoolMode:
    """Return the pool mode: only in session pooling, clients keep their idle sessions.

    In other modes, the second client gets the idle session, or the first one gets a new session.
    """
    pid = "SELECT pg_backend_pid()"
    with closing(connect()) as second:
        second.autocommit = True
        for _ in range(LOOKS):
            before = _value(first, pid)
            try:
                second.execute("BEGIN")
            except second.Error as error:
                if "statement pooling" in str(error):
                    return "statement"
                raise
            if _value(second, pid) == before or _value(first, pid) != before:
                return "transaction"
            second.execute("ROLLBACK")
    return "session"


def _lost(connection: Any, wanted: Mapping[str, str]) -> Iterator[str]:
    for name, value in wanted.items():
        # set_config returns the value as the server spells it; `true` limits it to this statement.
        query = "SELECT current_setting(%s, true), set_config(%s, %s, true)"
        found, normalized = connection.execute(query, (name, name, value)).fetchone()
        if found != normalized:
            yield name
