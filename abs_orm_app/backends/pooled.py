"""What the PostgreSQL and PostGIS engines share: one hardened pool per alias and process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from copy import deepcopy
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import ref

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as DjangoWrapper
from django.db.backends.postgresql.client import DatabaseClient
from django.utils.functional import cached_property

from abs_orm_app.backends.callers import keeps_the_pool
from abs_orm_app.backends.cleaning import clean, prepare, statements
from abs_orm_app.backends.cursors import SeenErrors, leased
from abs_orm_app.backends.lease import ALWAYS, LEASE
from abs_orm_app.backends.leasing import LeasingMixin
from abs_orm_app.backends.routing import only_reads
from abs_orm_app.backends.serving import requests_of
from abs_orm_app.backends.session_state import UNSEEN, Change
from abs_orm_app.config.application_name import process_name
from abs_orm_app.config.credentials import current_password, is_rotating
from abs_orm_app.config.entry import KEY, AppOptions, OwnSettings, app_options
from abs_orm_app.config.parameters import Parameters
from abs_orm_app.environment import refused
from abs_orm_app.pool import registry
from abs_orm_app.pool.core import Hooks
from abs_orm_app.pool.registry import notice_fork, pools, register_child_exit_hook
from abs_orm_app.pool.server_errors import without_frames

if TYPE_CHECKING:
    from abs_orm_app.backends.lease import Lease
    from abs_orm_app.pool.entry import AnyConnection
    from abs_orm_app.pool.holders import Pin
    from abs_orm_app.pool.pool import HardenedPool


logger = logging.getLogger("abs_orm_app.pool")


class Client(DatabaseClient):
    """For `manage.py dbshell`: it gets the current password, as the pool does."""

    @classmethod
    def settings_to_cmd_args_env(
        cls, settings_dict: dict[str, Any], parameters: Iterable[str]
    ) -> tuple[list[str], dict[str, str] | None]:
        keys = {"HOST": "host", "PORT": "port", "NAME": "dbname", "USER": "user"}
        params = {libpq: settings_dict[key] for key, libpq in keys.items() if settings_dict[key]}
        password = current_password(app_options(settings_dict), params)
        if password is not None:
            settings_dict = {**settings_dict, "PASSWORD": password}
        return super().settings_to_cmd_args_env(settings_dict, parameters)


class PooledMixin(LeasingMixin):
    """Builds a `HardenedPool` where Django's own engine builds psycopg_pool's.

    Without the `pool` option it is Django's engine, unchanged.
    """

    client_class = Client

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if asyncio._get_running_loop() is None:
            mine = id(self)
            _wrappers[mine] = ref(self, lambda _: _wrappers.pop(mine, None))

    _connection_pools: ClassVar[dict[str, HardenedPool]] = pools

    @property
    def pool(self) -> HardenedPool | None:
        """This process's pool for the alias, built on first use; None without a `pool` option.

        Also None for code that queries after the pools were closed at the end of the process: it
        connects directly. Raises `ImproperlyConfigured` for settings that no pool can have.
        """
        notice_fork()
        return self._find_pool()

    def _find_pool(self) -> HardenedPool | None:
        """`pool`, for callers that have just checked for a fork."""
        options = self.settings_dict["OPTIONS"].get("pool")
        if not options or self.alias == NO_DB_ALIAS:
            return None
        if registry.comes_after_the_end():
            return None
        while True:
            pool = self._connection_pools.get(self.alias)
            if pool is not None and pool.origin == origin(self.settings_dict):
                return pool
            if pool is not None:
                self._replace(pool)
            pool = self._build_pool(options)
            register_child_exit_hook()
            pool = self._connection_pools.setdefault(self.alias, pool)
            if (elder := _elders.pop(self.alias, None)) is not None:
                pool.succeed(elder)

    def _replace(self, pool: HardenedPool) -> None:
        """Close the pool of an alias whose entry was changed at run time.

        Django's test runner changes entries, and so do projects with an alias for each tenant.
        """
        current = connections.databases.get(self.alias)
        if self.settings_dict is not current and current and pool.origin == origin(current):
            raise ImproperlyConfigured(
                "The settings of this connection differ from"
                f" DATABASES[{self.alias!r}], whose pool it would use. If you changed DATABASES"
                " after the connection was made, close it and"
                f" `del connections[{self.alias!r}]` in this thread, then query again. Otherwise,"
                " give the connection its own alias."
            )
        if self._connection_pools.get(self.alias) is pool:
            _let_go(pool)
            self.close_pool()

    def _build_pool(self, options: Any) -> HardenedPool:
        from abs_orm_app.pool.pool import HardenedPool

        options = {} if options is True else options
        if not isinstance(options, dict):
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]['OPTIONS']['pool'] must be a dict or True."
            )
        if self.settings_dict.get("CONN_MAX_AGE", 0) != 0:
            raise ImproperlyConfigured("Pooling doesn't support persistent connections.")
        template = self._bare_copy(deepcopy(self.settings_dict))
        # Report mistakes in the settings here, not in the pool's threads.
        template._params_of_settings()
        extra = app_options(self.settings_dict)
        for name, why in refused(extra):
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]['ABS_ORM_APP'][{name!r}] is {why}."
            )
        parameters = {
            "kwargs": template._params_for_pool,
            "name": self.alias,
            "open": False,
            "configure": template._configure_for_pool,
            "pre_ping": self.settings_dict["CONN_HEALTH_CHECKS"],
            "leak_seconds": extra.get("leak_seconds"),
            "origin": kept(origin(self.settings_dict)),
            "hooks": EngineHooks(template, extra),
        }
        known = set(signature(HardenedPool).parameters) - parameters.keys() - {"conninfo"}
        self._refuse_unknown(options, known)
        return HardenedPool(**parameters, **template._with_own_reset(options))

    def _refuse_unknown(self, options: dict[str, Any], known: set[str]) -> None:
        if unknown := sorted(options.keys() - known):
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]['OPTIONS']['pool'] cannot have"
                f" {', '.join(map(repr, unknown))}; it may have {', '.join(sorted(known))}."
            )

    def _with_own_reset(self, options: dict[str, Any]) -> dict[str, Any]:
        """Reapply, after the project's own `reset`, what the alias sets at connect."""
        if (reset := options.get("reset")) is None:
            return options

        def reset_and_configure(connection: AnyConnection) -> None:
            reset(connection)
            self._configure_for_pool(connection)

        return {**options, "reset": reset_and_configure}

    def _bare_copy(self, settings: dict[str, Any]) -> Self:
        """Return a wrapper with these settings and no connection, without a subclass's `__init__`.

        Such an `__init__` may query (django-tenants), and would wait for the pool that is being
        built. It must be a copy: the pool lives longer than this thread, and must not keep the
        thread's wrapper alive, nor a connection that the wrapper holds when the thread ends.
        """
        bare = object.__new__(type(self))
        BaseDatabaseWrapper.__init__(bare, settings, self.alias)
        for name, value in vars(self).items():
            # Neither its lease nor a cached property, which may refer to the wrapper.
            if name != "_lease" and not isinstance(
                getattr(type(self), name, None), cached_property
            ):
                vars(bare).setdefault(name, value)
        return bare

    @cached_property
    def wrap_database_errors(self) -> SeenErrors:
        return SeenErrors(self)

    def get_connection_params(self) -> dict[str, Any]:
        """libpq's parameters of one connection, with the current password.

        psycopg.AsyncConnection, procrastinate and others connect with them, without the pool.
        Django also calls this at each checkout, but does not use the result, so the password is not
        read again then.
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
        """Like Django's, but without psycopg's frames in errors: they hold the password."""
        if apps.apps_ready:
            _warn_if_not_installed(self.settings_dict["ENGINE"])
        try:
            return super().get_new_connection(conn_params)
        except Exception as error:
            raise without_frames(error) from error.__cause__

    def connect_apart(self) -> AnyConnection:
        """Return a new connection of no pool, set up like those of the alias. May block."""
        template = self._bare_copy(self.settings_dict)
        connection = template.get_new_connection(template._params_for_pool())
        try:
            template._configure_for_pool(connection)
        except BaseException:
            connection.close()
            raise
        return connection  # type: ignore[no-any-return]

    def for_new_connection(self, params: dict[str, Any]) -> dict[str, Any]:
        """Add the current password, and the name of this process, which may be a fork."""
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
        return {**params, "autocommit": True}  # the alias's own is set at checkout

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
            _elders[self.alias] = pool
            pool.close()
            pool.close_orphans()


def _let_go(pool: HardenedPool) -> None:
    """Make threads outside of a request return their connections."""
    for entry in pool.core.in_use:
        lease: Lease | None = getattr(entry.weak(), LEASE, None)
        if lease is not None and lease.wanted is pool.core.queue.waiters:
            lease.wanted = ALWAYS
            lease.end_if_idle()


@cache  # once
def _warn_if_not_installed(engine: str) -> None:
    """Log this here, because without the app its checks do not run."""
    if not apps.is_installed("abs_orm_app"):
        logger.warning(
            "The engine %s is used, but its app is not installed, so nothing checks its settings,"
            " and `manage.py check_pool` is missing: add 'abs_orm_app' to INSTALLED_APPS.",
            engine,
        )


# The wrappers that were made outside of async code.
_wrappers: dict[int, ref[PooledMixin]] = {}


def threads_in_atomic_block(alias: str) -> set[int]:
    """Return the threads that are in `atomic()` of the alias. Async code may call this, too."""
    found = set()
    for weak in list(_wrappers.values()):
        wrapper = weak()
        if wrapper is not None and wrapper.in_atomic_block and wrapper.alias == alias:
            found.add(wrapper._thread_ident)
    return found


# Pools that were closed, by alias: their connections in use count until they are returned.
_elders: dict[str, HardenedPool] = {}


# Of the key ABS_ORM_APP. `release` is read by each wrapper.
_POOLS_OWN = (
    *(OwnSettings.__annotations__.keys() - {"release"}),
    "project",
    "password_file",
    "password_provider",
)


def origin(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Return the parts of a DATABASES entry that define its connections: where they lead, as which
    user, and how they are set up and cleaned.
    """
    extra = entry.get(KEY)  # without a call, as each lease needs it
    if not isinstance(extra, dict):
        extra = app_options(entry)
    return (
        entry["NAME"],
        entry["HOST"],
        entry["PORT"],
        entry["USER"],
        entry["PASSWORD"],
        entry["OPTIONS"],
        entry["TIME_ZONE"],
        entry["CONN_HEALTH_CHECKS"],
        *map(extra.get, _POOLS_OWN),
    )


def kept(value: Any) -> Any:
    """Return a copy that does not change with the entry; only dicts and tuples are copied."""
    if isinstance(value, dict):
        return {key: kept(each) for key, each in value.items()}
    return tuple(map(kept, value)) if isinstance(value, tuple) else value


class EngineHooks(Hooks):
    """The engine's answers to its pool. `template`: a wrapper of the alias without a connection."""

    unseen = Change(UNSEEN, "connection.pool")

    def __init__(self, template: PooledMixin, extra: AppOptions) -> None:
        self._template = template
        self.rotating = is_rotating(extra)
        self.in_file = bool(extra.get("password_file"))
        self.reads_only = only_reads(template.alias, template.settings_dict)
        self.cleans = extra.get("reset") != "never"
        self.cleans_all = extra.get("reset") == "always"

    def clean(self, conn: AnyConnection, dirty: Change | None) -> bool:
        return self._template._clean_for_pool(conn, dirty)

    def reclaim(self, conn: Any) -> bool:
        lease: Lease | None = getattr(conn, "_lease", None)
        if lease is None:
            return False
        if conn._pool_entry.is_orphaned() and not lease.users:
            lease.end()  # as at the end of a request
            return True
        if lease.pool.closed and lease.wanted is lease.pool.queue.waiters:  # outside of a request
            return lease.end_if_idle()
        return lease.reclaim()

    def pin_of(self, conn: Any) -> Pin | None:
        lease: Lease | None = getattr(conn, "_lease", None)
        return lease.why_kept() if lease is not None else None

    def served_by(self, threads: Collection[str]) -> dict[str, str]:
        return {name: request.label for name, request in requests_of(threads).items()}

    def is_gone(self) -> bool:
        alias = self._template.alias
        if alias in connections.databases:
            return False
        if (pool := pools.get(alias)) is not None:
            _let_go(pool)
            # The project may have wrappers of the alias that Django does not know.
            if pool.core.in_use or pool.core.queue.waiters:
                return False
            pools.pop(alias, None)
        return True

    def successor(self) -> HardenedPool | None:
        """Return the pool that the alias has now; None if the alias is gone."""
        alias = self._template.alias
        if registry.pools_are_closed() or alias not in connections.databases:
            return None
        pool: HardenedPool | None = getattr(connections[alias], "pool", None)
        return pool


def _hang_up() -> None:
    """Hang up this thread's connections that these engines have opened."""
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, PooledMixin):
            wrapper.hang_up()


registry.hang_up_hooks.append(_hang_up)
