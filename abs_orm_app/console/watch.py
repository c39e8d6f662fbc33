"""Looks at one database again and again, even while it does not answer."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from os import dup
from threading import Event
from typing import Any

from django.db import connections

from abs_orm_app.capacity.budget import Limit, in_use, limits
from abs_orm_app.facts.connecting import errors_of, parameters_of, seconds_to_connect
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure, explain
from abs_orm_app.facts.server import ServerFacts, read_server
from abs_orm_app.facts.sessions import Fleet, read_fleet
from abs_orm_app.facts.timeout import run_with_timeout

LOOK_TIMEOUT = 5.0  # seconds for the answers to one look, once connected
LOOKS_KEPT = 60


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the server answered at one moment."""

    at: datetime
    server: ServerFacts
    fleet: Fleet

    @property
    def limit(self) -> Limit:
        """The limit that leaves the fewest connections."""
        return min(limits(self.server), key=lambda limit: limit.connections - self.used_of(limit))

    @property
    def used(self) -> int:
        """Connections that count towards that limit."""
        return self.used_of(self.limit)

    def used_of(self, limit: Limit) -> int:
        return in_use(limit, self.server)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What is known after a look."""

    last: Look | None  # the last one that the server answered; None: it never did
    shares: tuple[float, ...]  # of the limit in use at the last looks, the oldest first
    failure: Failure | None  # why the newest look failed; None: it did not
    failing_since: datetime | None


def watch(database: Configured, interval: float, over: Event) -> Generator[Watched]:
    """Look every `interval` seconds until `over` is set, over one connection of its own."""
    session = _Session(database)
    last: Look | None = None
    failing_since: datetime | None = None
    shares: deque[float] = deque(maxlen=LOOKS_KEPT)
    try:
        while not over.is_set():
            failure = None
            try:
                last = session.look()
                shares.append(last.used / max(last.limit.connections, 1))
                failing_since = None
            except session.errors as error:
                failure = explain(error, database)
                failing_since = failing_since or datetime.now()
            yield Watched(
                last=last, shares=tuple(shares), failure=failure, failing_since=failing_since
            )
            over.wait(interval)
    finally:
        session.close()


class _Session:
    """A connection that is opened again after it failed."""

    def __init__(self, database: Configured) -> None:
        self._wrapper: Any = connections[database.alias]
        self._seconds = seconds_to_connect(database) + LOOK_TIMEOUT
        self._connection: Any = None
        self.errors = errors_of(self._wrapper)

    def look(self) -> Look:
        try:
            if self._connection is None:
                self._connection = run_with_timeout(self._seconds, self._connect)
            connection = self._connection
            return run_with_timeout(LOOK_TIMEOUT, lambda: _look(connection))
        except TimeoutError:
            self._cut_off()
            raise
        except self.errors:
            self.close()
            raise

    def _connect(self) -> Any:
        connection = self._wrapper.Database.connect(**parameters_of(self._wrapper))
        connection.autocommit = True
        return connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*self.errors):
                connection.close()

    def _cut_off(self) -> None:
        """End the late look, which still waits in its thread, with an error."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*self.errors), socket.socket(fileno=dup(connection.fileno())) as tcp:
                tcp.shutdown(socket.SHUT_RDWR)


def _look(connection: Any) -> Look:
    return Look(at=datetime.now(), server=read_server(connection), fleet=read_fleet(connection))
