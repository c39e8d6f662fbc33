"""Queries that take nothing from the pools, and end in time: for a page that shows trouble."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections

from abs_orm_app.facts.timeout import run_with_timeout

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import DatabaseWrapper as Base
else:
    Base = object

T = TypeVar("T")

CONNECT_TIMEOUT = 2  # seconds; a whole number for libpq
STATEMENT_TIMEOUT = 2.0  # seconds
SECONDS = 4.0  # for all that one asks

# What a server, a network or wrong settings raise.
TROUBLE = (Error, ImproperlyConfigured, OSError, TypeError, ValueError)


def beside_the_pools(work: Callable[[], T]) -> T:
    """The result of `work`, which has connections of its own, in a thread of its own.

    What it writes is committed at its end. Raises TimeoutError after `SECONDS`; the server has
    ended what it was asked by then.
    """

    def run() -> T:
        for alias in connections:
            with suppress(ImproperlyConfigured):  # another alias, that nobody can use
                connections[alias] = _beside(alias)
        try:
            result = work()
            for wrapper in connections.all(initialized_only=True):
                if wrapper.connection is not None and not wrapper.get_autocommit():
                    wrapper.commit()
            return result
        finally:
            connections.close_all()

    return run_with_timeout(SECONDS, run)


class Limited(Base):
    """An engine whose sessions are one transaction, which no statement may hold up.

    SET LOCAL, because a pooler would hand the setting of a session to its next client.
    """

    def init_connection_state(self) -> None:
        super().init_connection_state()
        with self.connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT * 1000:.0f}")


def _beside(alias: str) -> Any:
    wrapper = connections[alias]
    if wrapper.vendor != "postgresql":
        return wrapper
    entry = wrapper.settings_dict
    options = {name: value for name, value in entry["OPTIONS"].items() if name != "pool"}
    options["connect_timeout"] = CONNECT_TIMEOUT
    engine = type(wrapper)
    limited = type(engine.__name__, (Limited, engine), {})
    return limited({**entry, "AUTOCOMMIT": False, "CONN_MAX_AGE": 0, "OPTIONS": options}, alias)
