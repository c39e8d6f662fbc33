"""psycopg's cursors, which tell their lease what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, wraps
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from abs_orm_app.backends.lease import LEASE, Lease
from abs_orm_app.backends.session_state import CURSOR, UNSEEN, Change, change_of

F = TypeVar("F", bound=Callable[..., Any])

_UNREADABLE = Change(UNSEEN, "a statement that is not text")
_DROPPED = Change(CURSOR, "a server-side cursor that was not closed")


class LeasedCursorMixin:
    """A cursor that is registered with its lease while it is open.

    Django's cursors join their lease when they are made; one that the project makes from the
    handle joins at its first statement. On a connection without a lease (the pool's own, a bare
    one) it behaves as psycopg's.
    """

    _lease: Lease | None = None
    _portal = False  # it is a server-side cursor

    def join(self, lease: Lease) -> None:
        self._lease = lease
        lease.users[id(self)] = self._portal

    def close(self) -> None:
        lease = self._lease
        if lease is None:
            super().close()  # type: ignore[misc]
            return
        self._lease = None
        try:
            if self._portal:
                self._close_portal(lease)
            else:
                super().close()  # type: ignore[misc]
        finally:
            lease.leave(id(self))

    def _close_portal(self, lease: Lease) -> None:
        if lease.done:  # the connection may have another holder
            psycopg.Cursor.close(self)  # type: ignore[arg-type]
        else:
            super().close()  # type: ignore[misc]

    def __del__(self) -> None:
        lease = self._lease
        if lease is not None:
            self._lease = None
            if self._portal:
                lease.left = lease.left or _DROPPED
            lease.drop(id(self))
        if self._portal:
            super().__del__()  # type: ignore[misc]

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        _watch(self, query)
        return super().execute(query, *args, **kwargs)  # type: ignore[misc]

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        _watch(self, query)
        super().executemany(query, *args, **kwargs)  # type: ignore[misc]

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        _watch(self, query)
        return super().stream(query, *args, **kwargs)  # type: ignore[misc,no-any-return]

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        _watch(self, statement)
        return super().copy(statement, *args, **kwargs)  # type: ignore[misc,no-any-return]


def _watch(cursor: Any, query: Any) -> None:
    """Before a statement: raise if the lease has ended, and record a change of the session."""
    lease: Lease | None = cursor._lease
    if lease is None:
        lease = getattr(cursor.connection, LEASE, None)
        if lease is None or cursor.closed:
            return
        cursor.join(lease)
    _require_lease(lease)
    change = change_of(query) if type(query) is str else _change_of_other(cursor, query)
    if change is not None:
        lease.note(change)


def _change_of_other(cursor: Any, query: Any) -> Change | None:
    """For the other types that psycopg accepts: bytes, its `sql` objects, template strings."""
    if isinstance(query, sql.Composable):
        # With the cursor: a literal's type may be known to this connection only.
        return change_of(query.as_string(cursor))
    if isinstance(query, bytes):
        return change_of(query.decode(errors="replace"))
    return change_of(query) if isinstance(query, str) else _UNREADABLE


def _require_lease(lease: Lease | None) -> None:
    if lease is not None and lease.done:
        raise psycopg.InterfaceError("the connection of this cursor was released")


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
    """A subclass of `cursor_class` that is registered with its lease."""
    if issubclass(cursor_class, LeasedCursorMixin):
        return cursor_class
    names: dict[str, Any] = {"__module__": cursor_class.__module__}
    if issubclass(cursor_class, psycopg.ServerCursor):
        names["_portal"] = True
        for name in ("fetchone", "fetchmany", "fetchall", "scroll"):
            names[name] = _on_the_server(getattr(cursor_class, name))
        if hasattr(cursor_class, "__next__"):
            names["__next__"] = _on_the_server(cursor_class.__next__)
        else:
            names["__iter__"] = _rows_of_the_server(cursor_class.__iter__)
    return type(cursor_class.__name__, (LeasedCursorMixin, cursor_class), names)
