"""What a statement that was left in the middle costs: nothing but itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from django.db import Error, OperationalError, connections, transaction

from tests.support.databases import ALIAS, Database, ask, held
from tests.support.pools import Call

pytestmark = pytest.mark.server(sql=["CREATE TABLE notes (n int)"])

MANY = "COPY (SELECT n FROM generate_series(1, 1000000) AS n) TO STDOUT"
ONE = {"pool": {"min_size": 1, "max_size": 1, "timeout": 10}}


class GivenUpError(Exception):
    """Of a job's time limit."""


def copy_with_execute(wrapper: Any) -> None:
    with wrapper.cursor() as cursor, suppress(Error):
        cursor.execute(MANY)


def leave_a_copy(wrapper: Any) -> None:
    with suppress(Error, GivenUpError), wrapper.cursor() as cursor:
        copying = cursor.copy(MANY)
        copy = copying.__enter__()
        copy.read()
        raise GivenUpError


def leave_a_stream(wrapper: Any) -> None:
    cursor = wrapper.cursor()
    stream = cursor.stream("SELECT n FROM generate_series(1, 1000000) AS n")
    next(stream)
    wrapper.kept = stream  # by a traceback, for example
    cursor.close()


WAYS = [copy_with_execute, leave_a_copy, leave_a_stream]


@pytest.mark.parametrize("way", WAYS)
def test_the_next_statement_of_the_thread_works(
    database: Database, way: Callable[[Any], None]
) -> None:
    """In a job runner, nobody calls `close()` between two jobs."""
    wrapper = database(OPTIONS=ONE)
    for number in range(3):
        way(wrapper)
        assert ask(wrapper, "SELECT 7") == 7
        ask(wrapper, "INSERT INTO notes VALUES (%s)", number)
        assert ask(wrapper, "SELECT count(*) FROM notes WHERE n = %s", number) >= 1
    wrapper.close_if_unusable_or_obsolete()
    assert held(wrapper) == 0


@pytest.mark.parametrize("way", WAYS)
def test_threads_that_leave_one_do_not_block_the_pool(
    database: Database, way: Callable[[Any], None]
) -> None:
    wrapper = database(OPTIONS=ONE)

    def job() -> Any:
        way(connections[ALIAS])

    for _ in range(3):
        Call(job).result(within=30)
    assert ask(wrapper, "SELECT 7") == 7


def test_in_an_atomic_block_it_fails_and_writes_nothing(database: Database) -> None:
    """Another connection would not have what the block has written before."""
    wrapper = database(OPTIONS={"pool": {"min_size": 2, "max_size": 2, "timeout": 10}})
    with suppress(Error), transaction.atomic(ALIAS):
        ask(wrapper, "INSERT INTO notes VALUES (100)")
        copy_with_execute(wrapper)
        with pytest.raises(OperationalError):
            ask(wrapper, "INSERT INTO notes VALUES (101)")
        raise Error
    assert ask(wrapper, "SELECT count(*) FROM notes WHERE n >= 100") == 0


def test_after_an_interruption_prepared_statements_are_cleaned_before_the_next_request(
    database: Database,
) -> None:
    """psycopg may believe that the server has one which it has not."""
    wrapper = database(OPTIONS={**ONE, "prepare_threshold": 0, "server_side_binding": True})
    ask(wrapper)
    wrapper.close_if_unusable_or_obsolete()
    before = wrapper.pool.statistics.cleaned

    class Interrupting:
        """A parameter: its dumper is called within `execute`."""

    class Dumper(psycopg.adapt.Dumper):
        def dump(self, _: Any) -> Any:
            raise GivenUpError

    with wrapper.cursor() as cursor:
        cursor.cursor.adapters.register_dumper(Interrupting, Dumper)
        with pytest.raises(GivenUpError):
            cursor.execute("SELECT %s", [Interrupting()])
    wrapper.close_if_unusable_or_obsolete()
    ask(wrapper)
    assert wrapper.pool.statistics.cleaned == before + 1


def test_a_connection_that_is_closed_in_a_pipeline_is_replaced(database: Database) -> None:
    wrapper = database()
    with wrapper.cursor() as cursor:
        cursor.cursor.connection.close()
    assert ask(wrapper, "SELECT 7") == 7
    with suppress(Error), transaction.atomic(ALIAS):
        ask(wrapper, "INSERT INTO notes VALUES (200)")
        with wrapper.cursor() as cursor:
            cursor.cursor.connection.close()
        with pytest.raises(Error):
            ask(wrapper, "INSERT INTO notes VALUES (201)")
        raise Error
    assert ask(wrapper, "SELECT count(*) FROM notes WHERE n >= 200") == 0
