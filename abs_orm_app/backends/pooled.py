"""What the PostgreSQL and the PostGIS engine share: one hardened pool per alias and process."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as DjangoWrapper
from django.utils.functional import cached_property

from abs_orm_app.backends.celery_fixup import keeps_the_pool
from abs_orm_app.backends.cleaning import clean, prepare, statements
from abs_orm_app.backends.client import Client
from abs_orm_app.backends.cursors import leased
from abs_orm_app.backends.installed import warn_if_not_installed
from abs_orm_app.backends.leasing import LeasingMixin
from abs_orm_app.backends.routing import only_reads
from abs_orm_app.backends.seen_errors import SeenErrors
from abs_orm_app.config.application_name import process_name
from abs_orm_app.config.credentials import current_password, is_rotating
from abs_orm_app.config.entry import Release, Reset, app_options
from abs_orm_app.config.parameters import Parameters
from abs_orm_app.pool import registry
from abs_orm_app.pool.ending import close_orphans
from abs_orm_app.pool.faults import without_frames
from abs_orm_app.pool.registry import notice_fork, pools, register_child_exit_hook

if TYPE_CHECKING:
    from abs_orm_app.backends.lease import Lease
    from abs_orm_app.backends.session_state import Change
    from abs_orm_app.pool.entry import AnyConnection, Pin
    from abs_orm_app.pool.pool import HardenedPool


# Seconds unused, after which a waiting request may take a connection of a thread outside a request.
UNUSED = 1.0


class PooledMixin(LeasingMixin):
    """Builds a `HardenedPool` where Django's own engine builds psycopg_pool's.

    Without the `pool` option it is Django's engine, unchanged.
    """

    client_class = Client
    _connection_pools: ClassVar[dict[str, HardenedPool]] = pools

    @property
    def pool(self) -> HardenedPool | None:
        """This process's pool for the alias, built at its first use; None without a `pool` option.

        Also None for code that queries after the pools were closed at the end of the process: it
        connects directly. Raises `ImproperlyConfigured` for settings that no pool can have.
        """
        notice_fork()
        return self._find_pool()

    def _find_pool(self) -> HardenedPool | None:
        """`pool`, where a fork was looked for just now."""
        options = self.settings_dict["OPTIONS"].get("pool")
        if not options or self.alias == NO_DB_ALIAS:
            return None
        if registry.comes_after_the_end():
            return None
        database = self.settings_dict["NAME"]
        while (pool := self._connection_pools.get(self.alias)) is None or pool.database != database:
            if pool is not None:
                # Django's test runner changes the database of an alias that may have a pool.
                self.close_pool()
            pool = self._build_pool({} if options is True else options)
            register_child_exit_hook()
            self._connection_pools.setdefault(self.alias, pool)
        return pool

    def _build_pool(self, options: dict[str, Any]) -> HardenedPool:
        from abs_orm_app.pool.pool import HardenedPool

        if self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            raise ImproperlyConfigured("Pooling doesn't support persistent connections.")
        template = self._bare_copy(deepcopy(self.settings_dict))
        # Report mistakes in the settings here, not in the pool's threads.
        template._params_of_settings()
        extra = app_options(self.settings_dict)
        for key, values in (("release", get_args(Release)), ("reset", get_args(Reset))):
            if (given := extra.get(key, values[0])) not in values:
                raise ImproperlyConfigured(
                    f"DATABASES[{self.alias!r}]['ABS_ORM_APP'][{key!r}] is {given!r}; it may be"
                    f" {' or '.join(map(repr, values))}."
                )
        return HardenedPool(
            kwargs=template._params_for_pool,
            name=self.alias,
            open=False,
            configure=template._configure_for_pool,
            pre_ping=self.settings_dict["CONN_HEALTH_CHECKS"],
            leak_seconds=extra.get("leak_seconds"),
            rotating=is_rotating(extra),
            reads_only=only_reads(self.alias, self.settings_dict),
            database=self.settings_dict["NAME"],
            successor=partial(_current_pool, self.alias),
            clean=None if extra.get("reset") == "never" else template._clean_for_pool,
            clean_always=extra.get("reset") == "always",
            reclaim=_reclaim,
            pin_of=_pin_of,
            **template._with_own_reset(options),
        )

    def _with_own_reset(self, options: dict[str, Any]) -> dict[str, Any]:
        """Set again, after the project's own `reset`, what the alias sets at connect."""
        if (reset := options.get("reset")) is None:
            return options

        def reset_and_configure(connection: AnyConnection) -> None:
            reset(connection)
            self._configure_for_pool(connection)

        return {**options, "reset": reset_and_configure}

    def _bare_copy(self, settings: dict[str, Any]) -> Self:
        """A wrapper with these settings and no connection, made without a subclass's `__init__`.

        Such an `__init__` may query (django-tenants), and would wait for the pool that is being
        built. It must be a copy, because the pool lives longer than this thread, and must not keep
        alive the thread's wrapper, nor a connection that the wrapper holds when the thread ends.
        """
        bare = object.__new__(type(self))
        BaseDatabaseWrapper.__init__(bare, settings, self.alias)
        for name, value in vars(self).items():
            # Not its lease, and no cached property, which may refer to the wrapper.
            if name != "_lease" and not isinstance(
                getattr(type(self), name, None), cached_property
            ):
                vars(bare).setdefault(name, value)
        return bare

    @cached_property
    def wrap_database_errors(self) -> SeenErrors:
        return SeenErrors(self)

    def get_connection_params(self) -> dict[str, Any]:
        """libpq's parameters of one connection, with the password that is valid now.

        psycopg.AsyncConnection, procrastinate and others connect with them, without the pool.
        Django also calls this at each checkout, but does not use the result: the password is then
        not read again.
        """
        params = self._params_of_settings()
        if self._connecting:
            return params
        try:
            return self.for_new_connection(params)
        except Exception as error:
            raise without_frames(error) from error.__cause__

    def _params_of_settings(self) -> dict[str, Any]:
        try:
            return Parameters(super().get_connection_params())
        except Exception as error:
            raise without_frames(error) from error.__cause__

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """As Django's; an error has no frames of psycopg, whose variables are the password."""
        warn_if_not_installed(self.settings_dict["ENGINE"])
        try:
            return super().get_new_connection(conn_params)
        except Exception as error:
            raise without_frames(error) from error.__cause__

    def for_new_connection(self, params: dict[str, Any]) -> dict[str, Any]:
        """Add the password that is valid now, and the name of this process, which may be a fork."""
        extra = app_options(self.settings_dict)
        password = current_password(extra, params)
        if password is not None:
            params = Parameters({**params, "password": password})
        project = extra.get("project")
        if project and params.get("application_name") == project:
            params = Parameters({**params, "application_name": process_name(project)})
        return params

    def _params_for_pool(self) -> dict[str, Any]:
        """libpq's parameters for one connection of the pool, in a thread of the pool."""
        params = self.get_connection_params()
        params["cursor_factory"] = leased(params["cursor_factory"])
        return {**params, "autocommit": True}  # Django sets its own at checkout

    def _configure_for_pool(self, connection: AnyConnection) -> None:
        """Set the time zone and the role, in a thread of the pool.

        This uses a wrapper that has this connection. Django asks the wrapper for a connection to
        compose its SQL, and would otherwise wait for the pool, which waits for this.
        """
        wrapper = self._bare_copy(self.settings_dict)
        wrapper._bare = connection
        try:
            wrapper._configure_connection(connection)
        finally:
            wrapper._bare = None
        prepare(connection, self.settings_dict["OPTIONS"].get("isolation_level"))

    def _clean_for_pool(self, connection: AnyConnection, change: Change | None) -> bool:
        """Clean a connection, in a thread of the pool; False if it must be replaced."""
        if not clean(connection, change, self._cleaning_message):
            return False
        if type(self)._configure_connection.__module__ != DjangoWrapper.__module__:
            self._configure_for_pool(connection)
        return True

    @cached_property
    def _cleaning_message(self) -> bytes:
        role = self.settings_dict["OPTIONS"].get("assume_role")
        return statements(self.timezone_name, role)

    def close_pool(self) -> None:
        """Close this process's pool for the alias, if there is one; the next use builds another.

        Waiting requests continue with the next pool. Connections in use are closed when they are
        returned, or at once if the thread that holds one has ended. Does nothing if Celery's fixup
        calls it before or after a task: a child keeps its pool.
        """
        notice_fork()
        if keeps_the_pool():
            return
        if pool := self._connection_pools.pop(self.alias, None):
            pool.close()
            close_orphans(pool)


def _current_pool(alias: str) -> HardenedPool | None:
    """The pool that the alias has now, in the thread that asks; None if the alias is gone."""
    if registry.has_ended() or alias not in connections.databases:
        return None
    pool: HardenedPool | None = getattr(connections[alias], "pool", None)
    return pool


def _reclaim(connection: Any) -> bool:
    """Return a connection that a thread outside of a request does not use; False if it is used."""
    lease: Lease | None = getattr(connection, "_lease", None)
    return lease is not None and lease.end_if_unused(monotonic() - UNUSED)


def _pin_of(connection: Any) -> Pin | None:
    """What needs the session of a connection that a wrapper holds."""
    lease: Lease | None = getattr(connection, "_lease", None)
    return lease.pin() if lease is not None else None


def _hang_up() -> None:
    """Hang up this thread's connections of our engines."""
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, PooledMixin):
            wrapper.hang_up()


registry.hang_up_hooks.append(_hang_up)
