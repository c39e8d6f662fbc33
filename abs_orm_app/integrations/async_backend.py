"""Runs django-async-backend on the alias's pool: experimental.

It looks for `AsyncDatabaseWrapper` in the engine's module, which has it if `django_async_backend`
is in INSTALLED_APPS. Its ORM then shares the pool and its limit with the rest of the project.
"""

from __future__ import annotations

import sys
from typing import Any

from django.db import connections
from django.db.utils import load_backend
from django_async_backend.db.backends.postgresql.async_base import (
    AsyncDatabaseWrapper as ItsWrapper,
)
from psycopg import IsolationLevel

from abs_orm_app.aio import check_out
from abs_orm_app.backends.async_connection import HELD, PluggedConnection
from abs_orm_app.config.address import POSTGIS, POSTGRESQL
from abs_orm_app.pool.holders import task_of


def register() -> None:
    """Add the wrapper to the engines of this package that the project uses."""
    engines = {settings["ENGINE"] for settings in connections.settings.values()}
    for engine in engines & {POSTGRESQL, POSTGIS}:
        load_backend(engine).AsyncDatabaseWrapper = AsyncDatabaseWrapper


class AsyncDatabaseWrapper(ItsWrapper):  # type: ignore[misc]
    """Like the original, but uses the alias's pool; without a `pool` option, unchanged."""

    connection: Any
    pool = None  # it has no pool of its own

    async def get_new_connection(self, params: dict[str, Any]) -> Any:
        if not self.settings_dict["OPTIONS"].get("pool"):
            return await super().get_new_connection(params)
        level = self.settings_dict["OPTIONS"].get("isolation_level")
        self.isolation_level = IsolationLevel(level or IsolationLevel.READ_COMMITTED)
        holder = task_of(sys._getframe(1))
        self.connection = await check_out(self.alias, None, holder)
        return self.connection

    async def _configure_connection(self, connection: Any) -> bool:
        if isinstance(connection, PluggedConnection):
            return False  # the pool has configured it
        return bool(await super()._configure_connection(connection))

    async def _close(self) -> None:
        if isinstance(self.connection, PluggedConnection):
            connection, self.connection = self.connection, None
            connection.unplug()
        else:
            await super()._close()

    def create_cursor(self, name: str | None = None) -> Any:
        if name and isinstance(self.connection, PluggedConnection):
            self.connection.soil(HELD)  # the cursor may outlive its transaction
        return super().create_cursor(name)
