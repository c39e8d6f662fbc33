"""What a worker process does with its peer: take a connection, query, give it back.

The same few lines drive every peer, alone or from many threads at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from time import monotonic
from typing import Any, TypeVar

from abs_orm_app.environment import PoolSettings, database_from_env
from benchmarks.peers import BY_NAME, DJ_DB_CONN_POOL, Peer

T = TypeVar("T")


@dataclass(frozen=True)
class Client:
    """How one thread takes and gives back a connection; what it takes has `cursor()`."""

    take: Callable[[], Any]
    give: Callable[[Any], object]


def peer() -> Peer:
    """The one that this process is."""
    return BY_NAME[os.environ["BENCH_PEER"]]


def application_client() -> Client:
    """As a project does it: through Django's connection of this thread, whose `cursor()` connects;
    and what Django does after each request.
    """
    if peer().engine is None:
        return pool_client()
    wrapper = django_wrapper()
    return Client(lambda: wrapper, lambda _: wrapper.close_if_unusable_or_obsolete())


def pool_client() -> Client:
    """The bare pool, without Django around it."""
    pool = build()
    if hasattr(pool, "getconn"):
        pool.open()
        return Client(pool.getconn, give_back(pool))
    return Client(pool.connect, lambda connection: connection.close())


def give_back(pool: Any) -> Callable[[Any], object]:
    """Return how a request's connection is returned: ours would clean it after `putconn`."""
    give: Callable[[Any], object] = getattr(pool, "return_unchanged", pool.putconn)
    return give


def build() -> Any:
    """The pool, not yet opened where that can be told apart; None for a peer that has none."""
    if peer().engine is None:
        return _sqlalchemy_pool()
    wrapper = django_wrapper()
    if peer().engine != DJ_DB_CONN_POOL:
        return wrapper.pool
    from dj_db_conn_pool.core import pool_container

    if not pool_container.has(wrapper.alias):
        wrapper.ensure_connection()
        wrapper.close()
    return pool_container.get(wrapper.alias)


def django_wrapper() -> Any:
    """Django's connection, which belongs to the calling thread."""
    from django.db import connections

    return connections["default"]


@cache
def _sqlalchemy_pool() -> Any:
    from sqlalchemy import create_engine

    settings = PoolSettings.from_env()
    address = database_from_env()
    engine = create_engine(
        "postgresql+psycopg://",
        connect_args={
            "host": address["HOST"],
            "port": address["PORT"],
            "user": address["USER"],
            "dbname": address["NAME"],
            "autocommit": True,  # as Django's connections
            "prepare_threshold": None,  # the same
        },
        pool_size=settings.size,
        max_overflow=settings.overflow,
        pool_pre_ping=settings.pre_ping,
        pool_recycle=settings.recycle,
        pool_timeout=settings.timeout,
    )
    return engine.pool


def query(client: Client, sql: str) -> None:
    connection = client.take()
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            cursor.fetchall()
    finally:
        client.give(connection)


def fill() -> int:
    """Have as many idle connections in the pool as its size; returns how many."""
    size = PoolSettings.from_env().size if peer().pooled else 0
    if size:
        client = pool_client()
        for connection in [client.take() for _ in range(size)]:
            client.give(connection)
    return size


def empty() -> None:
    """Close what is open, as if this process had just started."""
    if peer().engine is not None:
        django_wrapper().close()
    pool = build()
    if hasattr(pool, "dispose"):
        pool.dispose()
    elif pool is not None:
        django_wrapper().close_pool()


def open_plain() -> Any:
    """A connection as Django makes it, which belongs to the caller."""
    wrapper = django_wrapper()
    return wrapper.get_new_connection(wrapper.get_connection_params())


def all_at_once(threads: int, job: Callable[[Client], T]) -> tuple[float, list[T]]:
    """Run the job in so many threads from the same moment on.

    Returns the moment (`monotonic`), and what each returned. The threads live on for the next call,
    and so do their persistent connections.
    """
    began = 0.0

    def note_the_time() -> None:
        nonlocal began
        began = monotonic()

    barrier = threading.Barrier(threads, note_the_time)

    def run(_: int) -> T:
        client = application_client()
        barrier.wait()
        return job(client)

    results = list(_crowd(threads).map(run, range(threads)))
    return began, results


@cache
def _crowd(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
