"""Gives async code connections of the same pool.

    from abs_orm_app import aio

    async with aio.connection("default", timeout=3) as conn:  # psycopg.AsyncConnection
        async with conn.transaction():
            await conn.execute("INSERT INTO notes VALUES (%s)", ["hello"])

It is not the connection of the ORM: neither of them sees what the other has not committed.
"""

from __future__ import annotations

import asyncio
import sys
from _thread import get_ident
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from asgiref.sync import AsyncToSync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import TransactionManagementError

from abs_orm_app.backends.async_connection import PluggedConnection
from abs_orm_app.backends.pooled import PooledMixin, origin, threads_in_atomic_block
from abs_orm_app.pool import threads
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.entry import AsyncTask, shut_down, twin_of
from abs_orm_app.pool.holders import task_of
from abs_orm_app.pool.queue import TaskWaiter
from abs_orm_app.pool.registry import notice_fork, pools
from abs_orm_app.pool.steps import run_in_task

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

__all__ = ["connection"]


def connection(
    alias: str = DEFAULT_DB_ALIAS, *, timeout: float | None = None
) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
    """Return a connection of the alias's pool for an `async with` block, with Django's autocommit.

    `timeout`: seconds to wait at most; DB_POOL_TIMEOUT by default. If the alias has no pool, it is
    a new connection, which is closed at the end.

    A transaction that is open at the end of the block is rolled back. Leaving the block never
    waits, so it cannot be cancelled.

    Raises `psycopg_pool.PoolTimeout` and psycopg's errors, which are not converted to Django's, and
    `TransactionManagementError` inside of an `atomic()` block of the alias.
    """
    return _Door(alias, timeout)


class _Door(AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]):
    def __init__(self, alias: str, timeout: float | None) -> None:
        self._alias, self._timeout = alias, timeout
        self._connection: PluggedConnection | None = None
        self._entered = False

    async def __aenter__(self) -> psycopg.AsyncConnection[Any]:
        if self._entered:
            raise RuntimeError("this block was entered before: call aio.connection() for each one")
        self._entered = True
        try:
            if threads_in_atomic_block(self._alias):
                await _refuse_in_atomic_block(self._alias)
            holder = task_of(sys._getframe(1))
            self._connection = await check_out(self._alias, self._timeout, holder)
        except BaseException:
            self._entered = False
            raise
        return self._connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        connection, self._connection = self._connection, None
        self._entered = False
        if connection is not None:
            connection.unplug()


async def check_out(alias: str, timeout: float | None, holder: AsyncTask) -> PluggedConnection:
    """Return a connection whose `unplug` returns it to the pool."""
    notice_fork()
    settings, pool = connections.settings.get(alias), pools.get(alias)
    if not settings or pool is None or pool.closed or pool.origin != origin(settings):
        wrapper = _wrapper(alias)
        settings, pool = wrapper.settings_dict, wrapper.pool
    plug = partial(PluggedConnection.plug_into, autocommit=settings["AUTOCOMMIT"])
    if pool is None:
        return plug(await _connect(_wrapper(alias)), _close)
    if pool.closed:
        pool.open()
    pool.statistics.checkouts += 1
    timeout = pool.timeout if timeout is None else timeout
    steps = pool.checkout(None, monotonic(), timeout, holder, TaskWaiter)
    conn: Any = await run_in_task(steps)
    end = partial(_return, conn._pool, conn._pool_entry.checkout)
    try:
        return plug(conn, end)
    except BaseException:
        end(conn, None)
        raise


def _return(pool: HardenedPool, checkout: Any, conn: Any, dirty: Any) -> None:
    pool.end_checkout(conn, checkout, dirty, later=True)


def _wrapper(alias: str) -> PooledMixin:
    wrapper = connections[alias]
    if not isinstance(wrapper, PooledMixin):
        raise ImproperlyConfigured(
            f"aio.connection({alias!r}) needs the engine abs_orm_app.backends.postgresql or"
            f" .postgis; DATABASES[{alias!r}] has {wrapper.settings_dict['ENGINE']!r}."
        )
    return wrapper


async def _refuse_in_atomic_block(alias: str) -> None:
    inside = get_ident() in threads_in_atomic_block(alias)
    if not inside and getattr(AsyncToSync.executors, "current", None) is not None:
        with suppress(RuntimeError):  # the sync code that has called this may have ended
            caller = await sync_to_async(get_ident)()
            inside = caller in threads_in_atomic_block(alias)
    if inside:
        raise TransactionManagementError(
            f"aio.connection({alias!r}) was called inside of atomic(). It has a connection of its"
            " own, which is not in that transaction and does not see its rows: call it outside of"
            " the block. A test that needs it must be a TransactionTestCase"
            " (pytest: django_db(transaction=True))."
        )


# Without a pool


async def _connect(wrapper: PooledMixin) -> Any:
    """Connect in a thread, because the project's own code may set up the connection."""
    done: Future[Any] = Future()

    def connect() -> None:
        try:
            conn = wrapper.connect_apart()
        except BaseException as error:
            outcome: Any = partial(done.set_exception, error)
            conn = None
        else:
            outcome = partial(done.set_result, conn)
        try:
            outcome()
        except InvalidStateError:  # cancelled
            if conn is not None:
                conn.close()

    threads.start("abs_orm_app-connect", connect)
    try:
        return await asyncio.wrap_future(done)
    except BaseException:
        if not done.cancel() and done.exception() is None:  # it has just connected
            done.result().close()
        raise


def _close(conn: Any, _dirty: object) -> None:
    if conn.lock.locked():  # another task waits on its socket in the loop
        with twin_of(conn) as twin:
            shut_down(twin)
    else:
        conn.close()
