"""Aliases of DATABASES that have a pool, on a server of the test's own.

database = Database(server)
wrapper = database(OPTIONS={"pool": {"max_size": 1}})  # Django's wrapper for ALIAS
ask(wrapper, "SELECT 1")
database.remove()
"""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from tests.support.pools import APP
from tests.support.servers import Server

ALIAS = "pooled"


def entry(server: Server, **changes: Any) -> dict[str, Any]:
    options = {"application_name": APP, "pool": {"min_size": 1, "max_size": 4, "timeout": 20}}
    return {
        "ENGINE": "abs_orm_app.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "PASSWORD": "",
        "HOST": str(server.socket_dir),
        "PORT": str(server.port),
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        **changes,
        "OPTIONS": {**options, **changes.get("OPTIONS", {})},
    }


class Database:
    """Adds aliases to Django's `connections`; `remove` closes their pools and removes them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.aliases: list[str] = []

    def __call__(self, alias: str = ALIAS, **changes: Any) -> Any:
        connections.databases[alias] = entry(self.server, **changes)
        connections.configure_settings(connections.databases)
        self.aliases.append(alias)
        return connections[alias]

    def remove(self) -> None:
        for alias in self.aliases:
            wrapper: Any = connections[alias]
            wrapper.close()
            wrapper.close_pool()
            del connections[alias]
            del connections.databases[alias]


def ask(wrapper: BaseDatabaseWrapper, sql: str = "SELECT pg_backend_pid()") -> Any:
    with wrapper.cursor() as cursor:
        cursor.execute(sql)
        row = cursor.fetchone()
    return row[0] if row else None
