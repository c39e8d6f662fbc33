"""psycopg's cursors; they report what they do to their lease, and their errors to the pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from django.db.utils import DatabaseErrorWrapper
from psycopg import sql

from abs_orm_app.backends.lease import CURSOR_OPEN, LEASE, PORTAL_OPEN, Lease, User
from abs_orm_app.backends.session_state import CURSOR, PREPARED, UNSEEN, Change, change_of

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

F = TypeVar("F", bound=Callable[..., Any])

_UNREADABLE = Change(UNSEEN, "a statement that is not text")
_DROPPED = Change(CURSOR, "a server-side cursor that was not closed")
INTERRUPTED = Change(PREPARED, "an interrupted statement")


class LeasedCursorMixin(User):
    """A cursor that is a user of its lease while it is open.

    Django's cursors join their lease when they are created; one that the project creates from the
    handle joins at its first statement. On a connection without a lease (the pool's own, a bare
    one) it behaves like psycopg's.
    """

    why = CURSOR_OPEN

    def close(self) -> None:
        """Like psycopg's, but a server-side cursor sends nothing after its lease has ended, or
        while a statement runs: a garbage collection may close it within a statement of its own
        thread, which would wait for itself. The session is cleaned instead.
        """
        lease = self._lease
        try:
            if self.why is PORTAL_OPEN and _must_be_silent(self, lease):
                psycopg.Cursor.close(self)  # type: ignore[arg-type]
            else:
                super().close()  # type: ignore[misc]
                if lease is not None and lease.portals:
                    lease.portals.discard(getattr(self, "name", ""))
        finally:
            if lease is not None:
                self.leave()

    def __del__(self) -> None:
        lease = self._lease
        if self.why is PORTAL_OPEN:
            if lease is not None:
                lease.soil(_DROPPED)
                self.leave()
            super(User, self).__del__()  # type: ignore[misc]  # psycopg's warning
            psycopg.Cursor.close(self)  # type: ignore[arg-type]  # its generator may close it next
        elif lease is not None:
            self.leave()

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        _watch(self, query)
        if self.why is PORTAL_OPEN and (lease := self._lease) is not None:
            lease.portals = {*(lease.portals or ()), self.name}  # type: ignore[attr-defined]
        try:
            return super().execute(query, *args, **kwargs)  # type: ignore[misc]
        except psycopg.Error:
            raise
        except BaseException:
            _note_interruption(self)
            raise

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        _watch(self, query)
        super().executemany(query, *args, **kwargs)  # type: ignore[misc]

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        _watch(self, query)  # at the first row: the lease may have ended by then
        yield from super().stream(query, *args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        _watch(self, statement)
        with super().copy(statement, *args, **kwargs) as copy:  # type: ignore[misc]
            yield copy

    def _start_query(self, query: Any = None) -> Any:
        """psycopg calls it for each statement, once it has the connection's lock. A return before
        that is noticed here, and one after that closes the connection.
        """
        _require_lease(self._lease)
        return super()._start_query(query)  # type: ignore[misc]


def _must_be_silent(cursor: Any, lease: Lease | None) -> bool:
    registration = cursor._registration
    return (
        cursor.closed
        or cursor.connection.lock.locked()
        or (lease is not None and lease.has_ended())
        # Cleared by a garbage collection, whose thread must not wait for a hung server.
        or (registration is not None and registration() is None)
    )


def _watch(cursor: Any, query: Any) -> None:
    """Before a statement: raise if the lease has ended, and record a change of the session."""
    lease: Lease | None = cursor._lease
    if lease is None:
        lease = getattr(cursor.connection, LEASE, None)
        if lease is None or lease.checkout or cursor.closed:  # the pool has the connection
            return
        if not cursor.join(lease):
            raise _released()
    elif lease.vote and lease.has_ended():
        raise _released()
    change = change_of(query) if type(query) is str else change_of_query(cursor, query)
    if change is not None:
        lease.note(change)


def change_of_query(cursor: Any, query: Any) -> Change | None:
    """`change_of` for each type that psycopg accepts: text, bytes, `sql` objects, templates."""
    if isinstance(query, sql.Composable):
        # With the cursor: this connection may be the only one that knows a literal's type.
        return change_of(query.as_string(cursor))
    if isinstance(query, bytes):
        return change_of(query.decode(errors="replace"))
    return change_of(query) if isinstance(query, str) else _UNREADABLE


def _note_interruption(cursor: Any) -> None:
    """Clean the session later: psycopg's list of prepared statements may be wrong."""
    lease: Lease | None = cursor._lease
    connection = None if lease is None else lease.connection
    if lease is not None and connection is not None and connection.prepare_threshold is not None:
        lease.soil(INTERRUPTED)


def _released() -> psycopg.InterfaceError:
    return psycopg.InterfaceError("the connection of this cursor was released")


def _require_lease(lease: Lease | None) -> None:
    if lease is not None and lease.has_ended():
        raise _released()


def _on_the_server(method: F) -> F:
    @wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        _require_lease(self._lease)
        return method(self, *args, **kwargs)

    return checked  # type: ignore[return-value]


def _rows_of_the_server(iterate: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    """For `__iter__` of psycopg before 3.3: a generator that fetches between two rows."""

    @wraps(iterate)
    def checked(self: Any) -> Iterator[Any]:
        _require_lease(self._lease)
        for row in iterate(self):
            yield row
            _require_lease(self._lease)

    return checked


@cache
def leased(cursor_class: type[Any]) -> type[Any]:
    """Return a subclass of `cursor_class` that is registered with its lease."""
    if issubclass(cursor_class, LeasedCursorMixin):
        return cursor_class
    names: dict[str, Any] = {"__module__": cursor_class.__module__}
    if issubclass(cursor_class, psycopg.ServerCursor):
        names["why"] = PORTAL_OPEN
        for name in ("fetchone", "fetchmany", "fetchall", "scroll"):
            names[name] = _on_the_server(getattr(cursor_class, name))
        if hasattr(cursor_class, "__next__"):
            names["__next__"] = _on_the_server(cursor_class.__next__)
        else:
            names["__iter__"] = _rows_of_the_server(cursor_class.__iter__)
    return type(cursor_class.__name__, (LeasedCursorMixin, cursor_class), names)


class SeenErrors(DatabaseErrorWrapper):
    """Django's translation of errors, which wraps each statement and each fetch.

    It reports an error to the pool, and costs nothing if there is none.
    """

    wrapper: BaseDatabaseWrapper

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            return
        connection = self.wrapper.connection
        pool: Any = getattr(connection, "_pool", None)
        if exc_value is not None and hasattr(pool, "saw_error"):
            pool.saw_error(connection, exc_value)
        super().__exit__(exc_type, exc_value, traceback)
