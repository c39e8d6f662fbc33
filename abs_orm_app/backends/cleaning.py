"""Cleans a used connection: resets what psycopg and the server keep for its session."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo
from functools import cache
from typing import TYPE_CHECKING, Any

from psycopg import Connection, IsolationLevel, ProgrammingError, sql
from psycopg.adapt import AdaptersMap
from psycopg.pq import Format

from abs_orm_app.backends.cursors import leased
from abs_orm_app.backends.lease import LEASE
from abs_orm_app.pool.closing import CLOSED
from abs_orm_app.pool.entry import ENTRY
from abs_orm_app.pool.liveness import ask

if TYPE_CHECKING:
    from abs_orm_app.backends.session_state import Change

# The parts of DISCARD ALL, which itself cannot be sent together with other statements. These can,
# as one message and one transaction.
DISCARD = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; DEALLOCATE ALL;"
    " UNLISTEN *; SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD PLANS; DISCARD TEMP;"
    " DISCARD SEQUENCES"
)
TIMESTAMPTZ = 1184  # the type's oid
TIMEOUT = 5.0  # seconds for the message

PRISTINE = "_pristine"  # the attribute of a connection that stores its state when it was new


@dataclass(frozen=True, slots=True)
class Pristine:
    """The state of psycopg's connection that a project can change."""

    isolation_level: IsolationLevel | None
    read_only: bool | None
    deferrable: bool | None
    prepare_threshold: int | None
    prepared_max: int | None
    row_factory: Any
    cursor_factory: Any
    server_cursor_factory: Any
    adapters: AdaptersMap
    time_zone: tzinfo | None  # of the datetimes that it reads
    of_libpq: tuple[Any, Any]  # its handlers of notices and notifications
    notice_handlers: tuple[Any, ...]
    notify_handlers: tuple[Any, ...]


def prepare(connection: Connection[Any], isolation_level: Any) -> None:
    """Finish the setup of a new connection, and record its state."""
    if isolation_level is not None:
        connection.isolation_level = IsolationLevel(isolation_level)
    server_cursor: Any = connection.server_cursor_factory
    connection.server_cursor_factory = leased(server_cursor)
    loader = connection.adapters.get_loader(TIMESTAMPTZ, Format.TEXT)
    pristine = Pristine(
        isolation_level=connection.isolation_level,
        read_only=connection.read_only,
        deferrable=connection.deferrable,
        prepare_threshold=connection.prepare_threshold,
        prepared_max=connection.prepared_max,
        row_factory=connection.row_factory,
        cursor_factory=connection.cursor_factory,
        server_cursor_factory=connection.server_cursor_factory,
        adapters=AdaptersMap(connection.adapters),
        time_zone=getattr(loader, "timezone", None),
        of_libpq=(connection.pgconn.notice_handler, connection.pgconn.notify_handler),
        notice_handlers=tuple(connection._notice_handlers),
        notify_handlers=tuple(connection._notify_handlers),
    )
    setattr(connection, PRISTINE, pristine)


def statements(time_zone: str | None, role: str | None) -> bytes:
    """Return one message that resets the session and sets what the alias sets at connect."""
    parts: list[sql.Composable] = [sql.SQL(DISCARD)]
    if time_zone:
        parts.append(sql.SQL("SET TIME ZONE {}").format(sql.Literal(time_zone)))
    if role:
        parts.append(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    return sql.SQL("; ").join(parts).as_bytes(None)


def clean(connection: Connection[Any], change: Change | None, message: bytes) -> bool:
    """Clean an idle connection; False if it must be replaced. Takes up to `TIMEOUT` seconds."""
    if change is not None and change.lasts:
        return False
    try:
        connection.commit()  # sends nothing, as it is idle
    except ProgrammingError:  # psycopg believes that it is in a two-phase transaction
        return False
    if ask(connection, message, TIMEOUT) is None:
        return False
    _restore(connection, getattr(connection, PRISTINE))
    return True


def forget_handlers(connection: Any) -> None:
    """Remove the handlers that were added since `prepare`."""
    pristine: Pristine = getattr(connection, PRISTINE)
    connection._notice_handlers[:] = pristine.notice_handlers
    connection._notify_handlers[:] = pristine.notify_handlers


@cache
def _own_names(connection_class: Any) -> frozenset[str]:
    """Return the names of a new connection's attributes. They are those of an unused one, because
    CPython 3.11 makes each later access to an object's attributes slower after `vars`.
    """
    return frozenset(vars(connection_class(CLOSED))) | {PRISTINE, LEASE, ENTRY, "_pool"}


def _restore(connection: Connection[Any], pristine: Pristine) -> None:
    for name in ("isolation_level", "read_only", "deferrable"):
        if getattr(connection, name) != getattr(pristine, name):
            setattr(connection, name, getattr(pristine, name))
    if not connection.autocommit:
        connection.autocommit = True
    connection.row_factory = pristine.row_factory
    connection.cursor_factory = pristine.cursor_factory
    connection.server_cursor_factory = pristine.server_cursor_factory
    connection._adapters = AdaptersMap(pristine.adapters)
    own_class: Any = type(connection)
    for name in vars(connection).keys() - _own_names(own_class):
        delattr(connection, name)  # a mark such as "is set up", which is no longer true
    pgconn = connection.pgconn
    pgconn.notice_handler, pgconn.notify_handler = pristine.of_libpq
    pgconn.untrace()
    forget_handlers(connection)
    while pgconn.notifies():
        pass
    if backlog := getattr(connection, "_notifies_backlog", None):  # psycopg < 3.2.4 has none
        backlog.clear()
    # The server no longer has the statements that psycopg believes to be prepared.
    connection._prepared = type(connection._prepared)()
    connection.prepare_threshold = pristine.prepare_threshold
    connection.prepared_max = pristine.prepared_max
