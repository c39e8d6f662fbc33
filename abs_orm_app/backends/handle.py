"""psycopg's connection for projects: reading a status does not pin the lease; using it does."""

from __future__ import annotations

from enum import Enum
from types import MethodType
from typing import TYPE_CHECKING, Any

from psycopg import ConnectionInfo, InterfaceError

from abs_orm_app.backends.callers import asked_by_psycopg
from abs_orm_app.backends.lease import HANDLE, User
from abs_orm_app.pool.holders import Pin

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg import Connection

_VALUES = (type(None), bool, int, float, str, bytes, Enum)  # what a project may read
_OWN = frozenset({"_lease", "_registration"})


class Handle(User):
    """The connection of a lease. The lease does not end while the project keeps this handle.

    Reading a value has no effect: `closed`, `autocommit`, a status or the server's process in
    `info`. Everything else may change the session, or give access to the connection itself, so it
    pins the lease, and the session is cleaned. After the lease has ended, the connection may have
    another holder, so this raises `InterfaceError`.
    """

    why = Pin(HANDLE.kind, HANDLE.what)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """psycopg's class, for `isinstance`."""
        return type(self._connection())

    def __getattr__(self, name: str) -> Any:
        if name == "closed" and self._is_gone():
            return True
        connection = self._connection()
        value = getattr(connection, name)
        if isinstance(value, ConnectionInfo):
            return _Info(self)
        if value is connection:  # its property `connection`
            return self
        if not isinstance(value, _VALUES):
            self._use()
        if isinstance(value, MethodType) and value.__self__ is connection:
            return MethodType(value.__func__, self)  # it may be called after the lease has ended
        return value

    def close(self) -> None:
        self._use().close()  # which gives itself to a pool with `close_returns`

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._use(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._use(), name)

    def __repr__(self) -> str:
        return repr(None if self._is_gone() else self._connection())

    def __enter__(self) -> Any:
        self._use().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._use().__exit__(kind, error, trace)

    def _is_gone(self) -> bool:
        lease = self._lease
        return lease is None or lease.has_ended()

    def _connection(self) -> Connection[Any]:
        lease = self._lease
        connection = None if lease is None or lease.has_ended() else lease.connection
        if connection is None:
            raise InterfaceError("the connection was released")
        return connection

    def _use(self) -> Connection[Any]:
        connection = self._connection()
        lease = self._lease
        if lease is not None and lease.pinned is not HANDLE:
            lease.soil(HANDLE)
            lease.pin(HANDLE)
        return connection


class _Info(ConnectionInfo):
    """`info` of a handle. It keeps the handle, or it could show another request's session later."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    @property
    def pgconn(self) -> Any:  # type: ignore[override]
        """psycopg only reads from it; a project that takes it may change the session."""
        handle = self._handle
        return (handle._connection() if asked_by_psycopg() else handle._use()).pgconn
