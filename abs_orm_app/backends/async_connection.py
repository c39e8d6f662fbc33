"""psycopg's async connection on the handle of a pool's connection, for `aio.py`.

The pool keeps sync connections, which belong to no event loop. For each checkout a new async one is
plugged into the handle, and unplugged on return. After that it has no handle, and whatever still
uses it fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import AsyncConnection, AsyncCursor, AsyncServerCursor
from psycopg.adapt import AdaptersMap
from psycopg.pq import PipelineStatus

from abs_orm_app.backends.callers import user_of
from abs_orm_app.backends.cursors import INTERRUPTED, change_of_query
from abs_orm_app.backends.session_state import CURSOR, UNSEEN, Change
from abs_orm_app.pool.closing import CLOSED, cancel_handle
from abs_orm_app.pool.entry import ENTRY
from abs_orm_app.pool.spoiled import balanced, judged, keep_cancel

if TYPE_CHECKING:
    from psycopg import Connection

    Base = AsyncCursor[Any]
else:
    Base = object

HELD = Change(CURSOR, "a server-side cursor WITH HOLD")
UNWATCHED = Change(UNSEEN, "a cursor of another class")


class PluggedConnection(AsyncConnection[Any]):
    """An async connection that does not own its handle.

    `dirty`: what was changed in the session. `unplug`: ends it; only the first call counts.
    """

    _origin: Connection[Any] | None = None
    dirty: Change | None = None
    _requests = 0  # cancel requests in progress; failed ones still count
    _cancel: Any = None  # libpq's handle of the last cancel request

    @classmethod
    def plug_into(
        cls, conn: Connection[Any], end: Callable[[Any, Change | None], object], *, autocommit: bool
    ) -> Self:
        """`end`: called with `conn` and what was changed in its session, when it is unplugged."""
        pgconn = conn.pgconn
        handlers = pgconn.notice_handler, pgconn.notify_handler
        connection = cls(pgconn)
        connection._handlers = handlers
        connection._end = end
        pool: Any = getattr(conn, "_pool", None) or end  # not None: `async with` then only commits
        connection._pool = pool
        connection._autocommit = autocommit
        connection._isolation_level = conn.isolation_level
        # One session has one list of prepared statements; two lists would use the same names.
        connection._prepared = conn._prepared
        connection._limits = conn.prepare_threshold, conn.prepared_max
        connection._adapters = AdaptersMap(conn.adapters)
        binds_here = issubclass(conn.cursor_factory, psycopg.ClientCursor)
        connection.cursor_factory = WatchedClientCursor if binds_here else WatchedCursor
        connection.server_cursor_factory = WatchedServerCursor
        connection._origin = conn
        return connection

    _handlers: tuple[Any, Any]
    _end: Callable[[Any, Change | None], object]
    _limits: tuple[int | None, int | None]

    def unplug(self) -> None:
        """Return the connection. Never waits."""
        conn, self._origin = self._origin, None
        if conn is None:
            return
        if self._is_in_use():
            conn.lock.acquire(blocking=False)  # the pool then leaves the handle to it
        entry = getattr(conn, ENTRY, None)
        if entry is not None and entry.cancel is None and self.closed:
            entry.cancel = self._cancel  # the statement may still run, see `cancel_safe`
        pgconn, self.pgconn = self.pgconn, CLOSED
        pgconn.notice_handler, pgconn.notify_handler = self._handlers
        self.prepare_threshold, self.prepared_max = self._limits
        self._prepared = type(self._prepared)()  # the shared list is now the next holder's
        self._end(conn, self.dirty)

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        self._requests += 1  # one that fails may still arrive
        # If psycopg is interrupted while it cancels, it closes the connection.
        self._cancel = cancel_handle(self.pgconn)
        await super().cancel_safe(timeout=timeout)
        self._requests -= 1

    def cancel(self) -> None:
        self._requests += 1
        super().cancel()
        self._requests -= 1

    async def close(self) -> None:
        """Return it if the pool has psycopg_pool's `close_returns`; otherwise close it."""
        if getattr(self._pool, "close_returns", False):
            self.unplug()
        else:
            keep_cancel(self, self._origin)
            await super().close()

    def _is_in_use(self) -> bool:
        """True if another task still uses it, an iteration was not finished, or a cancel request is
        in progress, which could hit a statement of the next holder.
        """
        return (
            self.lock.locked()
            or self._requests > 0
            or self._pipeline is not None
            or self.pgconn.pipeline_status != PipelineStatus.OFF
        )

    async def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        if self._origin is None:
            gen.close()
            raise psycopg.InterfaceError("the connection was returned")
        user = user_of(gen)
        if isinstance(user, (AsyncCursor, AsyncServerCursor)) and not isinstance(
            user, _WatchedMixin
        ):
            self.soil(UNWATCHED)
        try:
            return await super().wait(gen, *args, **kwargs)
        except psycopg.Error as error:
            pool: Any = getattr(self._origin, "_pool", None)
            if pool is not None:
                pool.saw_error(self._origin, error)
            raise
        except BaseException:
            if self.prepare_threshold is not None:
                self.soil(INTERRUPTED)
            raise

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[Any]:
        with judged(self, self._origin):
            async with super().pipeline() as pipeline:
                yield pipeline

    @asynccontextmanager
    async def _pipeline_nolock(self) -> AsyncIterator[Any]:
        """Called by `executemany`; in older releases, `pipeline` is called instead."""
        with judged(self, self._origin):
            async with super()._pipeline_nolock() as pipeline:
                yield pipeline

    @asynccontextmanager
    async def transaction(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        with balanced(self, self._origin) as rollback:
            async with super().transaction(*args, **kwargs) as block:
                rollback(block)
                yield block

    def soil(self, change: Change) -> None:
        """Have the session cleaned before its next holder."""
        if self.dirty is None or (change.lasts and not self.dirty.lasts):
            self.dirty = change


class _WatchedMixin(Base):
    """A cursor that reports to its connection what its statements change in the session."""

    def _watch(self, query: Any) -> None:
        change = change_of_query(self, query)
        if change is not None:
            self.connection.soil(change)  # type: ignore[attr-defined]

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Self:
        self._watch(query)
        return await super().execute(query, *args, **kwargs)

    async def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        self._watch(query)
        await super().executemany(query, *args, **kwargs)

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        self._watch(query)
        return super().stream(query, *args, **kwargs)

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        self._watch(statement)
        return super().copy(statement, *args, **kwargs)


class WatchedCursor(_WatchedMixin, AsyncCursor[Any]):
    pass


class WatchedClientCursor(_WatchedMixin, psycopg.AsyncClientCursor[Any]):
    pass


class WatchedServerCursor(_WatchedMixin, AsyncServerCursor[Any]):
    def _watch(self, query: Any) -> None:
        super()._watch(query)
        if self.withhold:
            self.connection.soil(HELD)  # type: ignore[attr-defined]
