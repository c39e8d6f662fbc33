"""Runs queries on connections outside the pools, with deadlines.

For features that must work while the pools are in trouble: the live page, and the health check of
a full pool. Each of them has at most one connection per alias and process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections

from abs_orm_app.facts.active import STATEMENT_TIMEOUT
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure, failure_of
from abs_orm_app.facts.timeout import run_with_timeout

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import DatabaseWrapper as Base
else:
    Base = object

T = TypeVar("T")

CONNECT_TIMEOUT = 2  # seconds; a whole number for libpq
SECONDS = 4.0  # for all queries of one caller
FRESH = 1.0  # seconds for which an answer is reused
TURN = 2.0  # seconds to wait for another caller to close its connection


class BusyError(OperationalError):
    """The one connection outside the pool is in use, or was opened too often."""


def failure_outside_pool(error: BaseException, database: Configured | None = None) -> Failure:
    """Like `failure_of`, with its own text for `BusyError`."""
    if isinstance(error, BusyError):
        return Failure(cause=str(error), hint="Try again in a few seconds.")
    return failure_of(error, database)


class Latest(Generic[T]):
    """Shares an answer among callers within a second: one asks, and the others wait for it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._at = float("-inf")
        self._answer: T

    def get(self, ask: Callable[[], T], seconds: float) -> T:
        """Raises what `ask` raises, or `BusyError` if another caller takes too long."""
        if not self._lock.acquire(timeout=seconds):
            raise BusyError("Another request has been asking this server for too long.")
        try:
            if monotonic() - self._at > FRESH:
                self._answer = ask()
                self._at = monotonic()
            return self._answer
        finally:
            self._lock.release()


class Rate:
    """Allows something `per_second` times a second, in bursts of up to that number."""

    def __init__(self, per_second: float) -> None:
        self._per_second = self._left = per_second
        self._at = monotonic()
        self._lock = Lock()

    def allows(self) -> bool:
        with self._lock:
            now = monotonic()
            more = (now - self._at) * self._per_second
            self._left, self._at = min(self._left + more, self._per_second), now
            if self._left < 1:
                return False
            self._left -= 1
            return True


def run_unpooled(
    work: Callable[[], T],
    *,
    purpose: str = "page",
    seconds: float = SECONDS,
    rate: Rate | None = None,
) -> T:
    """Run `work`, whose queries bypass the pools, in its own thread, and return its result.

    `work` uses Django's `connections` as usual; they open one connection for each alias that it
    uses. Its writes are committed at the end. Callers with the same `purpose` take turns, so that
    visitors of the page who wait for a locked table do not delay a health check.

    Raises TimeoutError after `seconds`, when the server has ended the last statement or soon will;
    `BusyError` if another caller keeps the connection, or `rate` allows no more.
    """

    def run() -> T:
        wrappers = []
        for alias in connections:
            with suppress(ImproperlyConfigured):  # some other, unusable alias
                connections[alias] = wrapper = _unpooled(alias, purpose, rate)
                wrappers.append(wrapper)
        try:
            result = work()
            for wrapper in wrappers:
                if wrapper.connection is not None and not wrapper.get_autocommit():
                    wrapper.commit()
            return result
        finally:
            # Not `connections.close_all()`: an alias may have been removed from DATABASES by now.
            for wrapper in wrappers:
                wrapper.close()

    return run_with_timeout(seconds, run)


class Unpooled(Base):
    """An engine without a pool, whose sessions are one transaction with a statement_timeout.

    It uses SET LOCAL, because a pooler would pass a session's setting on to the next client.
    """

    turn: Lock
    rate: Rate | None
    has_turn = False

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if self.rate and not self.rate.allows():
            raise BusyError("Too many visitors had to be looked up in the last second.")
        if not self.turn.acquire(timeout=TURN):
            raise BusyError("Another request is using the only connection outside the pool.")
        self.has_turn = True
        try:
            return super().get_new_connection(conn_params)
        except BaseException:
            self._end_turn()
            raise

    def init_connection_state(self) -> None:
        super().init_connection_state()
        with self.connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT}")

    def _close(self) -> None:
        try:
            super()._close()  # type: ignore[misc]
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        if self.has_turn:
            self.has_turn = False
            self.turn.release()


# The process id is in the key, because a lock may be held when a child is forked.
_turns: dict[tuple[int, str, str], Lock] = {}


def _unpooled(alias: str, purpose: str, rate: Rate | None) -> Any:
    wrapper = connections[alias]
    if wrapper.vendor != "postgresql":
        return wrapper
    entry = wrapper.settings_dict
    options = {name: value for name, value in entry["OPTIONS"].items() if name != "pool"}
    options["connect_timeout"] = CONNECT_TIMEOUT
    engine = type(wrapper)
    unpooled = type(engine.__name__, (Unpooled, engine), {})(
        {**entry, "AUTOCOMMIT": False, "CONN_MAX_AGE": 0, "OPTIONS": options}, alias
    )
    unpooled.turn = _turns.setdefault((os.getpid(), alias, purpose), Lock())
    unpooled.rate = rate
    return unpooled
