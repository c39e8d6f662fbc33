"""A server-side `iterator()` that the garbage collector closes harms neither process nor pool."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, connections, models, transaction

from tests.support.collected import collect_iterators
from tests.support.databases import ALIAS, Database, ask
from tests.support.pools import Call, uncollected
from tests.support.processes import backend, run
from tests.support.servers import Server

pytestmark = pytest.mark.server(sql=["CREATE UNLOGGED TABLE numbers (n int)"])

ROUNDS = {"healthy": 24, "suspended": 12}


@pytest.mark.parametrize("how", ROUNDS)
def test_a_thread_that_ends_in_an_iterator_harms_nobody(
    shared: Server, release: str, how: str
) -> None:
    result = run(
        shared,
        iterate,
        how,
        within=100,
        DB_POOL_SIZE="2",
        DB_MAX_OVERFLOW="0",
        DB_POOL_TIMEOUT="15",
        DB_POOL_RELEASE=release,
        MALLOC_PERTURB_="165",
    )
    assert result.status == 0, f"{result.status}: {result.errors}"


def iterate(how: str) -> None:
    class Column(models.Model):
        name = models.TextField(db_column="attname", primary_key=True)

        class Meta:
            app_label = "tests"
            db_table = "pg_attribute"
            managed = False

        def __str__(self) -> str:
            return self.name

    def columns() -> Iterator[Any]:
        return Column._default_manager.all().iterator(chunk_size=10)

    def rows(pids: list[int]) -> Iterator[Any]:
        pids.append(backend())
        yield from columns()

    def rows_in_a_transaction(pids: list[int]) -> Iterator[Any]:
        with transaction.atomic():
            yield from rows(pids)

    def request() -> None:
        backend()
        connection.close()

    collect_iterators(ROUNDS[how], [rows, rows_in_a_transaction], request, how)


def look(wrapper: Any) -> None:
    """Leave a half-read server-side cursor in a reference cycle, as a kept exception does."""

    def rows() -> Iterator[Any]:
        with wrapper.chunked_cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 50)")
            yield from cursor

    half_read = rows()
    next(half_read)
    kept: list[Any] = [half_read]
    kept.append(kept)


def copy(cursor: Any) -> None:
    with cursor.copy("COPY numbers FROM STDIN") as rows:
        gc.collect()
        rows.write_row([1])


def stream(cursor: Any) -> None:
    for _ in cursor.stream("SELECT generate_series(1, 3)"):
        gc.collect()


def many(cursor: Any) -> None:
    def rows() -> Iterator[Any]:
        for n in range(3):
            gc.collect()
            yield [n]

    cursor.executemany("INSERT INTO numbers VALUES (%s)", rows())


@pytest.mark.parametrize("statement", [copy, stream, many])
def test_an_iterator_that_is_collected_in_a_statement_of_its_thread_does_not_wait_for_it(
    database: Database, release: str, statement: Callable[[Any], None]
) -> None:
    """The next request finds nothing of it."""
    wrapper = database(
        OPTIONS={"pool": {"min_size": 1, "max_size": 1}}, ABS_ORM_APP={"release": release}
    )

    def work() -> None:
        mine: Any = connections[ALIAS]
        with mine.cursor() as cursor:
            look(mine)
            statement(cursor)
        mine.close()

    with uncollected():
        Call(work).result(within=30)
    assert ask(wrapper, "SELECT count(*) FROM pg_cursors WHERE is_holdable") == 0


def test_a_collection_does_not_wait_for_a_server_that_hangs(
    database: Database, shared: Server
) -> None:
    """Housekeeping collects, too; meanwhile it would look after no pool of the process."""
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 1}})
    backend_pid = ask(wrapper)

    def leave() -> None:
        mine: Any = connections[ALIAS]
        look(mine)

    try:
        with uncollected():
            wrapper.close()
            Call(leave).result(within=20)
            shared.suspend_backend(backend_pid)
            Call(gc.collect).result(within=10)
    finally:
        shared.resume()


@pytest.mark.parametrize("ends", [True, False])
def test_a_request_that_ends_while_its_iterator_is_collected_leaves_no_cursor(
    database: Database, ends: bool
) -> None:
    """A collection clears weak references before it closes anything."""
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 1}})
    wrapper.ensure_connection()
    lease = wrapper._lease
    with wrapper.chunked_cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 50)")
        lease.users.clear()
        if ends:
            wrapper.close()
            assert ask(wrapper, "SELECT count(*) FROM pg_cursors WHERE is_holdable") == 0
    wrapper.close()
    assert ask(wrapper, "SELECT count(*) FROM pg_cursors WHERE is_holdable") == 0
