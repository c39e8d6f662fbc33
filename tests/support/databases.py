"""Aliases of DATABASES that have a pool, on a server of the test's own.

database = Database(server)
wrapper = database(OPTIONS={"pool": {"max_size": 1}})  # Django's wrapper for ALIAS
ask(wrapper, "SELECT 1")
database.remove()
"""

from __future__ import annotations

from typing import Any

from asgiref.sync import SyncToAsync
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from abs_orm_app.backends.leasing import LeasingMixin
from abs_orm_app.pool.pool import HardenedPool
from tests.support.pools import APP, LATE
from tests.support.servers import Server

ALIAS = "pooled"
MODES = ("request", "transaction")  # DB_POOL_RELEASE
ONE = {"pool": {"min_size": 1, "max_size": 1, "timeout": 20}}  # OPTIONS
TWO = {"pool": {"min_size": 2, "max_size": 2, "timeout": 20}}


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


def pool_of(alias: str) -> HardenedPool:
    """The open pool of an alias."""
    pool: HardenedPool = connections[alias].pool  # type: ignore[attr-defined]
    pool.open(wait=True)
    return pool


class Database:
    """Adds aliases to Django's `connections`; `remove` closes their pools and removes them.

    release: when their connections go back to the pool, unless the test says otherwise.
    """

    def __init__(self, server: Server, release: str = "request") -> None:
        self.server = server
        self.release = release
        self.aliases: list[str] = []

    def __call__(self, alias: str = ALIAS, **changes: Any) -> Any:
        extra = {"release": self.release, **changes.pop("ABS_ORM_APP", {})}
        connections.databases[alias] = entry(self.server, ABS_ORM_APP=extra, **changes)
        connections.configure_settings(connections.databases)
        self.aliases.append(alias)
        return connections[alias]

    def remove(self) -> None:
        for alias in dict.fromkeys(self.aliases):
            wrapper: Any = connections[alias]
            wrapper.close()
            wrapper.close_pool()
            del connections[alias]
            executor = SyncToAsync.single_thread_executor
            if executor._threads:  # one, which has a wrapper of its own since `sync_to_async`
                executor.submit(connections.__delitem__, alias).exception(LATE)
            del connections.databases[alias]


def ask(wrapper: BaseDatabaseWrapper, sql: str = "SELECT pg_backend_pid()", *params: Any) -> Any:
    """Execute a statement as a project does; the first value, if it gives rows."""
    with wrapper.cursor() as cursor:
        cursor.execute(sql, params or None)
        row = cursor.fetchone() if cursor.description else None
    if not isinstance(row, tuple):  # by a row_factory of the test's
        return next(iter(row.values())) if row else None
    return row[0]


def held(wrapper: Any) -> int:
    """How many connections are checked out of the wrapper's pool, by whomever."""
    return len(wrapper.pool.in_use)


def kept(release: str) -> int:
    """How many connections a thread holds that has queried, and needs nothing of its session."""
    return {"request": 1, "transaction": 0}[release]


def end_request() -> None:
    for wrapper in connections.all(initialized_only=True):
        wrapper.close_if_unusable_or_obsolete()


def pin(wrapper: LeasingMixin) -> str | None:
    """What was found of the session that this thread has."""
    lease = wrapper._held()
    return lease.pinned.what if lease and lease.pinned else None
