"""What the PostgreSQL and the PostGIS engine share: one hardened pool per alias and process."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import NO_DB_ALIAS

from abs_orm_app.credentials import current_password, is_rotating
from abs_orm_app.naming import process_name
from abs_orm_app.opening import AnyConnection
from abs_orm_app.pool import HardenedPool, every_pool

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import DatabaseWrapper as DjangoWrapper

    class Base(DjangoWrapper):
        def _configure_connection(self, connection: AnyConnection) -> bool: ...
        def _close(self) -> None: ...
else:
    Base = object

# Seconds to wait for connections that are being opened, before the end of the process, or a fork.
SETTLE_TIMEOUT = 1.0
LAST = -100  # priority of what ends a child, after finalizers that may query


class PooledMixin(Base):
    """Builds a `HardenedPool` where Django's own engine builds psycopg_pool's.

    Without the `pool` option it is Django's engine, unchanged.
    """

    _connection_pools: ClassVar[dict[str, HardenedPool]] = {}
    _build_lock: ClassVar[threading.Lock] = threading.Lock()

    @property
    def pool(self) -> HardenedPool | None:
        """This process's pool for the alias, built at its first use; None without a `pool` option.

        Raises `ImproperlyConfigured` for settings that no pool can have.
        """
        options = self.settings_dict["OPTIONS"].get("pool")
        if not options or self.alias == NO_DB_ALIAS:
            return None
        _notice_fork()
        pool = self._connection_pools.get(self.alias)
        if pool is not None and pool.database == self.settings_dict["NAME"]:
            return pool
        with self._build_lock:
            pool = self._connection_pools.get(self.alias)
            if pool is None or pool.database != self.settings_dict["NAME"]:
                # Django's test runner changes the database of an alias that may have a pool.
                if pool is not None:
                    pool.close()
                pool = self._build_pool({} if options is True else options)
                _close_at_childs_end()
                self._connection_pools[self.alias] = pool
        return pool

    def _build_pool(self, options: dict[str, Any]) -> HardenedPool:
        if self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            raise ImproperlyConfigured("Pooling doesn't support persistent connections.")
        # A copy of its own: the pool lives longer than this thread, and must not keep alive its
        # wrapper, nor the connection that the wrapper may hold when the thread ends.
        template = self.copy()
        # What is wrong with the settings is said here, not by the pool's threads.
        template.get_connection_params()
        extra = self.settings_dict.get("ABS_ORM_APP", {})
        return HardenedPool(
            kwargs=template._params_for_pool,
            name=self.alias,
            open=False,
            configure=template._configure_for_pool,
            pre_ping=self.settings_dict["CONN_HEALTH_CHECKS"],
            leak_seconds=extra.get("leak_seconds"),
            rotating=is_rotating(extra),
            database=self.settings_dict["NAME"],
            **options,
        )

    def get_new_connection(self, conn_params: dict[str, Any]) -> AnyConnection:
        if self.pool is None:
            conn_params = self._for_new_connection(conn_params)
        connection: AnyConnection = super().get_new_connection(conn_params)
        return connection

    def _for_new_connection(self, params: dict[str, Any]) -> dict[str, Any]:
        """With the password of this moment, and named by this process: a fork may have made it."""
        extra = self.settings_dict.get("ABS_ORM_APP", {})
        password = current_password(extra, params)
        if password is not None:
            params = {**params, "password": password}
        project = extra.get("project")
        if project and params.get("application_name") == project:
            params = {**params, "application_name": process_name(project)}
        return params

    def _params_for_pool(self) -> dict[str, Any]:
        """libpq's parameters for one connection of the pool, in a thread of the pool."""
        params = self._for_new_connection(self.get_connection_params())
        return {**params, "autocommit": True}  # Django sets its own at checkout

    def _configure_for_pool(self, connection: AnyConnection) -> None:
        """Set the time zone and the role, in a thread of the pool.

        Through a wrapper that has this connection: to compose its SQL, Django asks the wrapper for
        one, and would wait for the pool that waits for this.
        """
        wrapper = self.copy()
        wrapper.connection = connection
        try:
            wrapper._configure_connection(connection)
        finally:
            wrapper.connection = None

    def close_pool(self) -> None:
        """Close this process's pool for the alias, if there is one; the next use builds another."""
        if pool := self._connection_pools.pop(self.alias, None):
            pool.close()

    def ensure_connection(self) -> None:
        _notice_fork()
        super().ensure_connection()

    def _close(self) -> None:
        _notice_fork()
        super()._close()

    def _hang_up(self) -> None:
        """Close the connection, if it is a pool's, and leave the atomic block that was its.

        Neither returns it nor rolls back: that would wait for a server that may be hung.
        """
        if getattr(self.connection, "_pool", None) is not None:
            self.connection.close()
            self.connection = None
            self.in_atomic_block = False
            self.run_on_commit = []


def current_pools() -> dict[str, HardenedPool]:
    """The pools that this process has for aliases of DATABASES, by alias."""
    _notice_fork()
    pools = PooledMixin._connection_pools.copy()
    return {alias: pools[alias] for alias in connections if alias in pools}


_pid = os.getpid()
_closes_at_end = True
_fork_lock = threading.Lock()


def _notice_fork() -> None:
    """Look whether this is a child that was forked without Python's knowledge, as uWSGI does."""
    if _pid != os.getpid():
        with _fork_lock:  # its threads may come here together
            if _pid != os.getpid():
                _start_clean()


def _settle() -> None:
    """Before a fork: leave no connection half open.

    With gevent the child has its parent's greenlets, too: both would talk on the same socket.
    """
    _notice_fork()
    for pool in list(every_pool):
        pool.settle(SETTLE_TIMEOUT)


def _start_clean() -> None:
    """In a forked child: leave the parent's pools and connections to the parent."""
    global _pid, _closes_at_end
    _closes_at_end = False
    PooledMixin._build_lock = threading.Lock()
    PooledMixin._connection_pools.clear()
    for pool in list(every_pool):
        pool.abandon()
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, PooledMixin):
            wrapper._hang_up()
    _pid = os.getpid()


def _close_at_childs_end() -> None:
    """In a forked child with its first pool: see to it that the pool is closed at the end.

    The children of multiprocessing and of Celery run no atexit handlers; this is what they run.
    """
    global _closes_at_end
    util = sys.modules.get("multiprocessing.util")
    if util and not _closes_at_end:
        _closes_at_end = True
        util.Finalize(None, _close_all, exitpriority=LAST)


def _close_all() -> None:
    """At the end of the process: say goodbye to the server, so that it logs no lost client."""
    _notice_fork()
    for pool in list(every_pool):
        pool.close_for_good(SETTLE_TIMEOUT)
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, PooledMixin):
            wrapper._hang_up()


os.register_at_fork(before=_settle, after_in_child=_start_clean)
atexit.register(_close_all)
