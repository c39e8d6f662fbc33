"""The same statements through Django's engine, and on a pool without it.

with begun(server, "transaction") as (begin, pool):
    session = begin()  # in the thread that uses it
    with session.cursor() as cursor:
        cursor.execute("SELECT 1")
    session.end()  # the request is over
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from django.core.signals import request_finished, request_started
from django.db import connections, transaction

from tests.support.databases import ALIAS, MODES, Database
from tests.support.pools import AnyPool, ours
from tests.support.servers import Server

POOL = "pool"  # without Django
EVERY_MODE = (POOL, *MODES)


class Session(Protocol):
    """What one request or task does."""

    def cursor(self) -> AbstractContextManager[Any]: ...
    def server_cursor(self) -> AbstractContextManager[Any]: ...
    def handle(self) -> Any:
        """psycopg's connection, as a project gets it."""

    def pipeline(self) -> AbstractContextManager[Any]: ...
    def atomic(self) -> AbstractContextManager[Any]: ...
    def is_left_in_atomic(self) -> bool:
        """True if Django's own code that ends an atomic block was interrupted."""

    def end(self) -> None: ...


Begin = Callable[[], Session]


class EngineSession:
    """One request of a thread, on Django's wrapper."""

    def __init__(self) -> None:
        request_started.send(type(self))
        self.wrapper: Any = connections[ALIAS]

    def cursor(self) -> Any:
        return self.wrapper.cursor()

    def server_cursor(self) -> Any:
        return self.wrapper.chunked_cursor()

    def handle(self) -> Any:
        self.wrapper.ensure_connection()
        return self.wrapper.connection

    def pipeline(self) -> Any:
        return self.handle().pipeline()

    def atomic(self) -> AbstractContextManager[Any]:
        return transaction.atomic(ALIAS)

    def is_left_in_atomic(self) -> bool:
        return bool(self.wrapper.in_atomic_block)

    def end(self) -> None:
        request_finished.send(type(self))


class PoolSession:
    """One checkout."""

    def __init__(self, pool: AnyPool) -> None:
        self.pool = pool
        self.conn = pool.getconn()
        self.pool = self.conn._pool or pool  # a closed one has a successor

    def cursor(self) -> Any:
        return self.conn.cursor()

    def server_cursor(self) -> Any:
        return self.conn.cursor("portal", withhold=True)

    def handle(self) -> Any:
        return self.conn

    def pipeline(self) -> Any:
        return self.conn.pipeline()

    def atomic(self) -> Any:
        return self.conn.transaction()

    def is_left_in_atomic(self) -> bool:
        return False

    def end(self) -> None:
        self.pool.putconn(self.conn)


@contextmanager
def begun(server: Server, mode: str, **options: Any) -> Iterator[tuple[Begin, AnyPool]]:
    """How a session begins in this mode, and its pool, which has these options."""
    options = {"min_size": 1, "max_size": 2, "timeout": 10, **options}
    if mode == POOL:
        with ours(server.conninfo, **options) as pool:
            yield lambda: PoolSession(pool), pool
        return
    database = Database(server, mode)
    wrapper = database(OPTIONS={"pool": options})
    try:
        yield EngineSession, wrapper.pool
    finally:
        database.remove()
