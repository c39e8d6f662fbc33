"""What the PostgreSQL and the PostGIS engine share: one hardened pool per alias and process."""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import NO_DB_ALIAS

from abs_orm_app.opening import AnyConnection
from abs_orm_app.pool import HardenedPool, every_pool

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import DatabaseWrapper as DjangoWrapper

    class Base(DjangoWrapper):
        def _configure_connection(self, connection: AnyConnection) -> bool: ...
else:
    Base = object

EXIT_TIMEOUT = 1.0  # seconds that the end of the process waits for connections being opened


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
        if _pid != os.getpid():
            _start_clean()
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
            kwargs=lambda: {**template.get_connection_params(), "autocommit": True},
            name=self.alias,
            open=False,
            configure=template._configure_for_pool,
            pre_ping=self.settings_dict["CONN_HEALTH_CHECKS"],
            leak_seconds=extra.get("leak_seconds"),
            database=self.settings_dict["NAME"],
            **options,
        )

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


_pid = os.getpid()


def _start_clean() -> None:
    """In a forked child: leave the parent's pools and connections to the parent."""
    global _pid
    _pid = os.getpid()
    PooledMixin._build_lock = threading.Lock()
    PooledMixin._connection_pools.clear()
    inherited = [pool for pool in list(every_pool) if not pool.closed]
    for pool in inherited:
        pool.abandon()
    for wrapper in connections.all(initialized_only=True):
        raw = wrapper.connection
        if raw is not None and getattr(raw, "_pool", None) in inherited:
            wrapper.close()


def _close_all() -> None:
    """At the end of the process: say goodbye to the server, so that it logs no lost client."""
    if _pid == os.getpid():
        for wrapper in connections.all(initialized_only=True):
            if isinstance(wrapper, PooledMixin) and wrapper.pool:
                wrapper.close()
    for pool in list(every_pool):
        pool.close(EXIT_TIMEOUT)


os.register_at_fork(after_in_child=_start_clean)
atexit.register(_close_all)
