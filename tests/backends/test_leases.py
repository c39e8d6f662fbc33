"""When a wrapper gives its connection back, and what keeps it: in both modes, side by side."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.core import signals
from django.core.exceptions import SynchronousOnlyOperation
from django.core.management import call_command
from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError
from django.test import TestCase
from django.test.utils import CaptureQueriesContext
from psycopg.types.json import JsonbDumper

from abs_orm_app.backends import pinned, release, released
from abs_orm_app.backends.postgresql.base import DatabaseWrapper
from tests.support.bytecodes import BACKENDS, paused
from tests.support.databases import ALIAS, ONE, TWO, Database, ask, end_request, held, kept, pin
from tests.support.pools import APP, Call, uncollected
from tests.support.servers import wait_until

pytestmark = pytest.mark.server(
    {"max_prepared_transactions": "2"},
    roles=["tenant"],
    sql=[
        "CREATE FUNCTION hide(value text) RETURNS text LANGUAGE sql"
        " AS $$ SELECT set_config('app.tenant', value, false) $$"
    ],
)

ROWS = 5000
PATIENCE = 30.0  # seconds
SERIES = f"SELECT n FROM generate_series(1, {ROWS}) AS n"


# What gives back


def test_after_a_query(database: Database, release: str) -> None:
    wrapper = database()
    assert ask(wrapper)
    assert held(wrapper) == kept(release)
    end_request()
    assert held(wrapper) == 0


def test_after_a_query_that_fails(database: Database, release: str) -> None:
    wrapper = database()
    with pytest.raises(DatabaseError):
        ask(wrapper, "SELECT 1 / 0")
    assert held(wrapper) == kept(release)
    assert ask(wrapper)


def test_after_an_atomic_block_and_before_its_commit_hooks(
    database: Database, release: str
) -> None:
    wrapper = database()
    seen: list[int] = []
    with transaction.atomic(ALIAS):
        one = ask(wrapper)
        assert held(wrapper) == 1
        with transaction.atomic(ALIAS):
            assert ask(wrapper) == one
        assert held(wrapper) == 1
        transaction.on_commit(lambda: seen.append(held(wrapper)), using=ALIAS)
        transaction.on_commit(lambda: seen.append(ask(wrapper, "SELECT 7")), using=ALIAS)
    assert seen == [kept(release), 7]
    assert held(wrapper) == kept(release)


def test_after_an_empty_atomic_block_and_one_that_is_rolled_back(
    database: Database, release: str
) -> None:
    wrapper = database()
    with transaction.atomic(ALIAS, durable=True):
        pass
    assert held(wrapper) == kept(release)
    with transaction.atomic(ALIAS):
        ask(wrapper)
        transaction.set_rollback(True, using=ALIAS)
    assert held(wrapper) == kept(release)


def test_autocommit_off_keeps_it_until_it_is_on_again(database: Database, release: str) -> None:
    wrapper = database()
    transaction.set_autocommit(False, using=ALIAS)
    one = ask(wrapper)
    transaction.commit(using=ALIAS)
    assert held(wrapper) == 1
    assert ask(wrapper) == one
    transaction.rollback(using=ALIAS)
    transaction.set_autocommit(True, using=ALIAS)
    assert held(wrapper) == kept(release)


def test_an_alias_without_autocommit_keeps_it_until_the_request_ends(database: Database) -> None:
    wrapper = database(AUTOCOMMIT=False)
    ask(wrapper)
    transaction.commit(using=ALIAS)
    assert held(wrapper) == 1
    assert not transaction.get_autocommit(using=ALIAS)
    end_request()
    assert held(wrapper) == 0


def test_where_the_alias_has_no_autocommit_the_project_may_turn_it_on_and_atomic_is_kept(
    database: Database,
) -> None:
    """What is written is there, in either mode of DB_POOL_RELEASE."""
    wrapper = database(AUTOCOMMIT=False)
    ask(wrapper, "DROP TABLE IF EXISTS written; CREATE UNLOGGED TABLE written (n int)")
    transaction.commit(using=ALIAS)
    end_request()

    def write(n: int) -> None:
        ask(wrapper, f"INSERT INTO written VALUES ({n}) RETURNING n")

    transaction.set_autocommit(True, using=ALIAS)
    assert transaction.get_autocommit(using=ALIAS)
    write(1)
    assert transaction.get_autocommit(using=ALIAS)
    write(2)
    with transaction.atomic(using=ALIAS):
        write(3)
    end_request()
    assert not transaction.get_autocommit(using=ALIAS)
    end_request()
    for n in (4, 5):
        with transaction.atomic(using=ALIAS), transaction.atomic(using=ALIAS):
            write(n)
        transaction.commit(using=ALIAS)
        end_request()
    with transaction.atomic(using=ALIAS):
        write(6)  # and nobody commits
    end_request()
    assert ask(wrapper, "SELECT sum(n) FROM written") == 1 + 2 + 3 + 4 + 5
    transaction.rollback(using=ALIAS)


def test_a_transaction_begun_in_sql_keeps_it_until_it_ends(
    database: Database, release: str
) -> None:
    wrapper = database()
    ask(wrapper, "BEGIN")
    one = ask(wrapper)
    assert held(wrapper) == 1
    assert ask(wrapper) == one
    ask(wrapper, "COMMIT")
    assert held(wrapper) == kept(release)


def test_asking_for_autocommit_takes_no_connection(database: Database, release: str) -> None:
    wrapper = database()
    ask(wrapper)
    end_request()
    assert transaction.get_autocommit(using=ALIAS)
    assert held(wrapper) == kept(release)
    called: list[bool] = []
    transaction.on_commit(lambda: called.append(True), using=ALIAS)
    assert called


# Cursors


def test_a_cursor_keeps_it_while_it_is_open(database: Database, release: str) -> None:
    wrapper = database()
    outer = wrapper.cursor()
    outer.execute("SELECT pg_backend_pid() UNION ALL SELECT 0")
    assert held(wrapper) == 1
    assert ask(wrapper) == outer.fetchone()[0]
    assert held(wrapper) == 1
    outer.close()
    outer.close()
    assert held(wrapper) == kept(release)


def test_a_cursor_that_is_dropped_gives_it_back(database: Database, release: str) -> None:
    wrapper = database()
    cursor = wrapper.cursor()
    cursor.execute("SELECT 1")
    del cursor
    assert held(wrapper) == kept(release)


def test_a_cursor_in_a_cycle_gives_it_back_when_another_thread_collects_it(
    database: Database, release: str
) -> None:
    wrapper = database()
    with uncollected():
        cursor = wrapper.cursor()
        cursor.execute("SELECT 1")
        cycle: list[Any] = [cursor]
        cycle.append(cycle)
        del cursor, cycle
        assert held(wrapper) == 1
        Call(gc.collect).result(within=20)
    assert held(wrapper) == kept(release)
    assert ask(wrapper)


def test_an_iteration_keeps_it_until_it_is_finished_or_dropped(
    database: Database, release: str
) -> None:
    wrapper = database()

    def rows(cursor: Any) -> Any:
        with cursor:
            cursor.execute(SERIES)
            yield from cursor

    iteration = rows(wrapper.chunked_cursor())
    assert next(iteration) == (1,)
    other = ask(wrapper)
    assert held(wrapper) == 1
    assert sum(1 for _ in iteration) == ROWS - 1
    assert held(wrapper) == kept(release)

    iteration = rows(wrapper.chunked_cursor())
    next(iteration)
    assert ask(wrapper) == other
    del iteration
    assert held(wrapper) == kept(release)
    assert ask(wrapper, "SELECT count(*) FROM pg_cursors") == 0


def test_a_server_side_cursor_that_is_never_closed_is_not_left_to_the_next(
    database: Database, release: str
) -> None:
    wrapper = database(OPTIONS=ONE)
    cursor = wrapper.chunked_cursor()
    cursor.execute(SERIES)
    one = ask(wrapper)
    with pytest.warns(ResourceWarning):
        del cursor
    assert held(wrapper) == kept(release)
    end_request()
    assert ask(wrapper) == one
    assert ask(wrapper, "SELECT count(*) FROM pg_cursors") == 0


@pytest.mark.parametrize("binding", [False, True])
def test_server_side_cursors_work_outside_of_a_transaction(
    database: Database, release: str, binding: bool
) -> None:
    wrapper = database(OPTIONS={"server_side_binding": binding})
    with wrapper.chunked_cursor() as cursor:
        cursor.execute(SERIES)
        assert len(cursor.fetchmany(10)) == 10
        assert held(wrapper) == 1
    assert held(wrapper) == kept(release)


def test_stream_and_copy_keep_it(database: Database, release: str) -> None:
    wrapper = database()
    with wrapper.cursor() as cursor:
        stream = cursor.stream(SERIES)
        assert next(stream) == (1,)
        assert held(wrapper) == 1
        del stream
    assert held(wrapper) == kept(release)
    with wrapper.cursor() as cursor, cursor.copy(f"COPY ({SERIES}) TO STDOUT") as copy:
        assert held(wrapper) == 1
        assert sum(1 for _ in copy.rows()) == ROWS
    assert held(wrapper) == kept(release)


def test_a_stream_that_is_given_up_ends_with_its_cursor(database: Database, release: str) -> None:
    wrapper = database()
    cursor = wrapper.cursor()
    stream = cursor.stream("SELECT n FROM generate_series(1, 1000000) AS n")
    next(stream)
    del cursor, stream
    assert held(wrapper) == kept(release)
    assert ask(wrapper, "SELECT 1") == 1


# Pins: statements

CLEAN = [
    "SELECT set_config('app.tenant', '7', true)",
    "SELECT pg_advisory_xact_lock(7)",
    "SET LOCAL work_mem = '1MB'",
    "CREATE TEMP TABLE gone (n int) ON COMMIT DROP",
]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1; SET app.tenant = '7'",
        "DO $$ BEGIN PERFORM set_config('app.tenant', '7', false); END $$",
    ],
)
def test_a_changed_session_is_kept_and_the_next_request_finds_nothing(
    database: Database, statement: str
) -> None:
    """In either mode; `test_inherited` has the other kinds of changes."""
    wrapper = database(OPTIONS=ONE)
    ask(wrapper, statement)
    one = ask(wrapper)
    assert held(wrapper) == 1
    with transaction.atomic(ALIAS):
        assert ask(wrapper) == one
    assert (ask(wrapper), ask(wrapper, "SHOW app.tenant")) == (one, "7")
    end_request()
    assert ask(wrapper, "SELECT current_setting('app.tenant', true)") in (None, "")


@pytest.mark.parametrize("statement", CLEAN)
def test_a_change_that_ends_with_its_transaction_does_not_pin(
    database: Database, release: str, statement: str
) -> None:
    wrapper = database()
    with transaction.atomic(ALIAS):
        ask(wrapper, statement)
    assert held(wrapper) == kept(release)
    assert pin(wrapper) is None


def test_a_set_that_is_rolled_back_pins_too(database: Database) -> None:
    """Which of its statements a transaction takes back is not worth the risk to be wrong."""
    wrapper = database()
    with transaction.atomic(ALIAS):
        ask(wrapper, "SET app.tenant = '7'")
        transaction.set_rollback(True, using=ALIAS)
    assert pin(wrapper) == "SET app.tenant"
    assert held(wrapper) == 1


def test_statements_of_all_kinds_and_methods_are_watched(database: Database) -> None:
    wrapper = database()
    query = "SELECT set_config('app.tenant', '7', false)"
    ways: list[Callable[[Any], Any]] = [
        lambda cursor: cursor.execute(query),
        lambda cursor: cursor.execute(psycopg.sql.SQL(query)),
        lambda cursor: cursor.cursor.execute(query.encode()),
        lambda cursor: cursor.executemany("SELECT set_config('app.tenant', %s, false)", [["7"]]),
        lambda cursor: list(cursor.stream(query)),
        lambda cursor: cursor.callproc("set_config", ["app.tenant", "7", False]),
        lambda cursor: _copy(cursor, f"COPY ({query}) TO STDOUT"),
    ]
    for way in ways:
        with wrapper.cursor() as cursor:
            way(cursor)
        assert pin(wrapper) == "set_config"
        assert ask(wrapper, "SHOW app.tenant") == "7"
        end_request()


def test_a_literal_of_a_type_that_only_this_connection_knows(database: Database) -> None:
    wrapper = database()
    wrapper.ensure_connection()
    wrapper.connection.adapters.register_dumper(dict, JsonbDumper)
    query = psycopg.sql.SQL("SELECT {} ->> 'a'").format(psycopg.sql.Literal({"a": "b"}))
    with wrapper.cursor() as cursor:
        cursor.execute(query)
        assert cursor.fetchone() == ("b",)


def _copy(cursor: Any, statement: str) -> None:
    with cursor.copy(statement) as copy:
        list(copy.rows())


# Pins: the handle


def test_a_project_that_asks_for_the_handle_keeps_the_session(database: Database) -> None:
    wrapper = database()
    wrapper.ensure_connection()
    assert held(wrapper) == 1
    one = ask(wrapper)
    handle = wrapper.connection
    assert ask(wrapper) == one == handle.info.backend_pid
    handle.row_factory = psycopg.rows.dict_row
    handle.execute("SET app.tenant = '7'")
    assert held(wrapper) == 1
    end_request()
    assert held(wrapper) == 0
    assert wrapper.connection is None


def test_a_handle_taken_in_a_transaction_or_from_a_cursor_keeps_the_session(
    database: Database,
) -> None:
    wrapper = database()
    with transaction.atomic(ALIAS):
        handle = connections[ALIAS].connection
    assert held(wrapper) == 1
    handle.execute("SELECT 1")
    end_request()
    with wrapper.cursor() as cursor:
        handle = cursor.connection
    assert held(wrapper) == 1
    handle.execute("SELECT 1")


def test_a_project_that_connects_by_itself_keeps_the_connection(database: Database) -> None:
    """Nobody takes it from the thread either, as from one that has left it unused."""
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 3}})
    mine = wrapper.copy()
    mine.connect()
    try:
        assert held(wrapper) == 1
        with pytest.raises(OperationalError, match="the only connection is in use"):
            ask(wrapper)
    finally:
        mine.close()
    assert ask(wrapper)


def test_cursors_of_a_factory_that_the_project_sets_work(database: Database) -> None:
    wrapper = database()
    wrapper.ensure_connection()
    wrapper.connection.cursor_factory = psycopg.ClientCursor
    assert ask(wrapper, "SELECT %s", 7) == 7
    assert held(wrapper) == 1
    end_request()
    assert held(wrapper) == 0


def test_a_cursor_made_of_the_handle_keeps_what_it_sets_and_fails_after_the_release(
    database: Database,
) -> None:
    wrapper = database()
    with wrapper.cursor() as cursor:
        mine = cursor.cursor.connection.cursor()  # past what counts as asking for the handle
        mine.execute("SET app.tenant = '7'")
    mine.execute("SELECT 1")
    mine.close()
    with pytest.raises(psycopg.InterfaceError, match="closed"):
        mine.execute("SELECT 1")
    assert pin(wrapper) == "SET app.tenant"
    other = wrapper.connection.cursor()
    other.execute("SELECT 1")
    release(ALIAS)
    with pytest.raises(psycopg.InterfaceError, match="was released"):
        other.execute("SELECT 1")


def test_changes_of_psycopgs_connection_are_undone_for_the_next_holder(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    wrapper.ensure_connection()
    handle = wrapper.connection
    before = {name: getattr(handle, name) for name in STATE}
    pid = handle.info.backend_pid
    handle.row_factory = psycopg.rows.dict_row
    handle.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    handle.read_only = handle.deferrable = True
    handle.prepare_threshold, handle.prepared_max = 0, 5
    handle.cursor_factory, handle.server_cursor_factory = psycopg.Cursor, psycopg.ServerCursor
    handle.adapters.register_loader("int4", psycopg.types.string.TextLoader)
    handle.add_notify_handler(print)
    handle.execute("LISTEN mine")
    handle.execute("NOTIFY mine")
    end_request()
    del handle
    wrapper.ensure_connection()
    assert wrapper.connection.info.backend_pid == pid
    assert {name: getattr(wrapper.connection, name) for name in STATE} == before
    assert ask(wrapper, "SELECT 1::int4") == 1
    assert list(wrapper.connection.notifies(timeout=0)) == []


def test_a_two_phase_transaction_is_not_left_to_the_next(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    xid = f"{database.release}-1"
    wrapper.ensure_connection()
    wrapper.set_autocommit(False)
    wrapper.connection.tpc_begin(xid)
    wrapper.connection.tpc_prepare()
    end_request()
    with transaction.atomic(ALIAS):  # psycopg refuses commit() in a two-phase transaction
        assert ask(wrapper, "SELECT 1") == 1
    ask(wrapper, f"ROLLBACK PREPARED '{xid}'")


STATE = (
    "autocommit", "row_factory", "isolation_level", "read_only", "deferrable", "prepare_threshold",
    "prepared_max", "cursor_factory", "server_cursor_factory",
)  # fmt: skip


def test_statements_that_psycopg_has_prepared_are_prepared_again_after_a_cleaning(
    database: Database,
) -> None:
    options = {"prepare_threshold": 0, "server_side_binding": True}
    options["pool"] = {"min_size": 1, "max_size": 1, "timeout": 20}  # type: ignore[assignment]
    wrapper = database(OPTIONS=options)
    for _ in range(3):
        assert ask(wrapper, "SELECT %s::int", 5) == 5
        ask(wrapper, "SET app.tenant = '7'")
        end_request()
    assert ask(wrapper, "SELECT %s::int", 6) == 6


# release(), released(), pinned()


def test_release_gives_it_back_in_either_mode_and_whatever_the_session_has(
    database: Database,
) -> None:
    wrapper = database()
    ask(wrapper, "SET app.tenant = '7'")
    release(ALIAS)
    assert held(wrapper) == 0
    release(ALIAS)
    ask(wrapper)
    with released(ALIAS):
        assert held(wrapper) == 0
        assert ask(wrapper)
    assert ask(wrapper)


def test_release_calls_close_where_a_subclass_forgets_what_it_has_set(database: Database) -> None:
    settings = database().settings_dict
    with forgetful(settings) as wrapper:
        assert ask(wrapper, "SHOW search_path") == "tenant"
        release(ALIAS)
        assert ask(wrapper, "SHOW search_path") == "tenant"


class Forgetful(DatabaseWrapper):
    """As django-tenants with TENANT_LIMIT_SET_CALLS: sets the search path once a connection."""

    is_set = False

    def close(self) -> None:
        self.is_set = False
        super().close()

    def _cursor(self, name: str | None = None) -> Any:
        cursor = super()._cursor(name)
        if not self.is_set:
            self.is_set = True
            cursor.execute("SET search_path = tenant")
        return cursor


@contextmanager
def forgetful(settings: dict[str, Any]) -> Iterator[Any]:
    before = connections[ALIAS]
    wrapper = Forgetful(settings, ALIAS)
    connections[ALIAS] = wrapper
    try:
        yield wrapper
    finally:
        wrapper.close()
        connections[ALIAS] = before


@pytest.mark.parametrize(
    "entered", [lambda: release(ALIAS), lambda: released(ALIAS).__enter__()], ids=["call", "block"]
)
def test_release_in_an_atomic_block_is_refused(
    database: Database, entered: Callable[[], Any]
) -> None:
    wrapper = database()
    with transaction.atomic(ALIAS):
        ask(wrapper)
        with pytest.raises(TransactionManagementError, match="in an atomic block"):
            entered()
        assert held(wrapper) == 1


def test_release_is_refused_where_something_needs_the_session(database: Database) -> None:
    wrapper = database()
    ask(wrapper, "BEGIN")
    with pytest.raises(TransactionManagementError, match="it is in a transaction"):
        release(ALIAS)
    ask(wrapper, "ROLLBACK")
    with wrapper.chunked_cursor() as cursor:
        cursor.execute(SERIES)
        with pytest.raises(TransactionManagementError, match="a server-side cursor is open"):
            release(ALIAS)
    with pinned(ALIAS):
        ask(wrapper)
        with pytest.raises(TransactionManagementError, match=r"in a pinned\(\) block"):
            release(ALIAS)
    release(ALIAS)


def test_release_is_refused_where_autocommit_would_change(database: Database) -> None:
    """The next lease would have the alias's own: what is meant to be rolled back is committed."""
    wrapper = database()
    ask(wrapper)
    transaction.set_autocommit(False, using=ALIAS)
    with pytest.raises(TransactionManagementError, match=r"set_autocommit\(False\) is in effect"):
        release(ALIAS)
    transaction.set_autocommit(True, using=ALIAS)
    release(ALIAS)
    assert held(wrapper) == 0


def test_release_is_no_surprise_where_the_alias_has_no_autocommit(database: Database) -> None:
    wrapper = database(AUTOCOMMIT=False)
    ask(wrapper)
    with pytest.raises(TransactionManagementError, match="in a transaction"):
        release(ALIAS)
    transaction.rollback(using=ALIAS)
    release(ALIAS)
    assert held(wrapper) == 0
    ask(wrapper)
    assert not transaction.get_autocommit(using=ALIAS)


def test_release_is_refused_while_rows_come(database: Database) -> None:
    wrapper = database()
    refused = r"a stream\(\) or copy\(\) is open"
    with wrapper.cursor() as cursor:
        rows = cursor.stream(SERIES)
        next(rows)
        with pytest.raises(TransactionManagementError, match=refused):
            release(ALIAS)
        rows.close()
    with wrapper.cursor() as cursor, cursor.copy(f"COPY ({SERIES}) TO STDOUT") as copy:
        with pytest.raises(TransactionManagementError, match=refused):
            release(ALIAS)
        assert sum(1 for _ in copy.rows()) == ROWS
    assert ask(wrapper, "SELECT 1") == 1


def test_release_in_a_pinned_block_is_refused_before_its_first_query_too(
    database: Database,
) -> None:
    database()
    with pinned(ALIAS), pytest.raises(TransactionManagementError, match=r"in a pinned\(\) block"):
        release(ALIAS)


def test_in_async_code_release_and_pinned_say_how(database: Database) -> None:
    """They would do nothing there: the queries are in another thread."""
    wrapper = database()

    async def view() -> int:
        await sync_to_async(lambda: ask(connections[ALIAS]))()
        with pytest.raises(SynchronousOnlyOperation, match=r"await sync_to_async\(release\)\(\)"):
            release(ALIAS)
        with pytest.raises(SynchronousOnlyOperation, match=r"sync_to_async\(\) calls"):
            pinned(ALIAS).__enter__()
        await sync_to_async(release)(ALIAS)
        return held(wrapper)

    assert asyncio.run(view()) == 0


def test_release_inside_a_test_case_changes_nothing(database: Database) -> None:
    """Or no view that releases could be tested with Django's `TestCase`."""
    wrapper = database()
    block = transaction.atomic(ALIAS)
    block._from_testcase = True  # type: ignore[attr-defined]  # as TestCase has it
    with block:
        one = ask(wrapper)
        release(ALIAS)
        assert ask(wrapper) == one
        with transaction.atomic(ALIAS), pytest.raises(TransactionManagementError):
            release(ALIAS)


def test_release_where_there_is_no_pool_changes_nothing(database: Database) -> None:
    wrapper = database(OPTIONS={"pool": None}, CONN_MAX_AGE=None)
    one = ask(wrapper)
    release(ALIAS)
    with pinned(ALIAS):
        assert ask(wrapper) == one


def test_a_cursor_that_outlives_its_lease_does_not_touch_the_connection(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    cursor = wrapper.cursor()
    cursor.execute("SELECT 1 UNION ALL SELECT 2")
    release(ALIAS)
    assert cursor.fetchone() == (1,)  # it was read before
    with transaction.atomic(ALIAS):
        ask(wrapper)
        for step in (lambda: cursor.execute("ROLLBACK"), lambda: list(cursor.stream("SELECT 1"))):
            with pytest.raises((InterfaceError, psycopg.InterfaceError), match="was released"):
                step()
        cursor.close()
        assert held(wrapper) == 1


def test_a_server_side_cursor_that_outlives_its_lease_does_not_touch_the_connection(
    database: Database,
) -> None:
    wrapper = database(OPTIONS=ONE)
    cursor = wrapper.chunked_cursor()
    cursor.execute(SERIES)
    wrapper.close()
    with transaction.atomic(ALIAS):
        ask(wrapper)
        with pytest.raises((InterfaceError, psycopg.InterfaceError), match="was released"):
            cursor.fetchone()
        cursor.close()
        assert ask(wrapper, "SELECT count(*) FROM pg_cursors") == 0


def test_pinned_keeps_the_session_that_a_function_changes(database: Database, release: str) -> None:
    wrapper = database(OPTIONS=ONE)
    with pinned(ALIAS):
        assert held(wrapper) == 0
        ask(wrapper, "SELECT hide('7')")
        assert held(wrapper) == 1
        with pinned(ALIAS):
            pass
        assert ask(wrapper, "SHOW app.tenant") == "7"
    assert held(wrapper) == kept(release)
    end_request()
    assert ask(wrapper, "SELECT current_setting('app.tenant', true)") in (None, "")


# Django's promises


def test_models_hold_what_they_need_and_nothing_afterwards(
    database: Database, release: str
) -> None:
    wrapper = database()
    call_command("migrate", database=ALIAS, verbosity=0)
    assert held(wrapper) == kept(release)
    rows = Group.objects.using(ALIAS)
    rows.all().delete()
    rows.bulk_create([Group(name=str(number)) for number in range(3000)])
    assert held(wrapper) == kept(release)
    iteration = rows.iterator(chunk_size=100)
    next(iteration)
    assert held(wrapper) == 1
    assert sum(1 for _ in iteration) == 2999
    assert held(wrapper) == kept(release)
    with transaction.atomic(ALIAS):
        one = rows.select_for_update().first()
        assert one is not None
        with transaction.atomic(ALIAS):
            rows.filter(pk=one.pk).update(name="other")
        assert held(wrapper) == 1
    assert held(wrapper) == kept(release)
    assert pin(wrapper) is None


def test_wrappers_counts_and_logs_see_each_query_once(database: Database) -> None:
    wrapper = database()
    seen: list[str] = []

    def watch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    with wrapper.execute_wrapper(watch), CaptureQueriesContext(wrapper) as captured:
        ask(wrapper, "SELECT 1")
        with transaction.atomic(ALIAS):
            ask(wrapper, "SELECT %s", 2)
    assert seen == ["SELECT 1", "SELECT %s"]
    assert [query["sql"] for query in captured] == ["SELECT 1", "BEGIN", "SELECT 2", "COMMIT"]
    assert pin(wrapper) is None


def test_connection_created_is_sent_at_each_lease_as_with_the_stock_pool(
    database: Database, release: str
) -> None:
    wrapper = database()
    sent: list[int] = []

    def receiver(connection: Any, **_: object) -> None:
        sent.append(connection.connection.info.backend_pid)

    ask(wrapper)
    end_request()
    connection_created.connect(receiver)
    try:
        for _ in range(3):
            ask(wrapper)
        end_request()
        ask(wrapper)
    finally:
        connection_created.disconnect(receiver)
    assert len(sent) == {"request": 2, "transaction": 4}[release]
    assert pin(wrapper) is None


def test_a_receivers_changes_do_not_pin_and_are_cleaned(database: Database, release: str) -> None:
    """It sets it at each lease; but perhaps not for the next."""
    wrapper = database(OPTIONS=ONE)

    def receiver(connection: Any, **_: object) -> None:
        ask(connection, "SET app.tenant = '7'")

    connection_created.connect(receiver)
    try:
        assert ask(wrapper, "SHOW app.tenant") == "7"
        assert held(wrapper) == kept(release)
        assert ask(wrapper, "SHOW app.tenant") == "7"
        end_request()
    finally:
        connection_created.disconnect(receiver)
    assert ask(wrapper, "SELECT current_setting('app.tenant', true)") in (None, "")


def test_the_handlers_that_a_receiver_adds_do_not_pile_up(database: Database) -> None:
    """Each notice would be told once for each lease before."""
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 20}})
    told: list[str | None] = []

    def tell(diagnostic: Any) -> None:
        told.append(diagnostic.message_primary)

    def receiver(connection: Any, **_: object) -> None:
        connection.connection.add_notice_handler(tell)

    connection_created.connect(receiver)
    try:
        for _ in range(3):
            ask(wrapper)
            end_request()
        ask(wrapper, "DO $$ BEGIN RAISE WARNING 'once'; END $$")
    finally:
        connection_created.disconnect(receiver)
    assert told == ["once"]


def test_each_alias_has_a_lease_of_its_own(database: Database, release: str) -> None:
    one, two = database("one"), database("two")
    with transaction.atomic("one"):
        ask(one)
        ask(two)
        assert (held(one), held(two)) == (1, kept(release))
    end_request()
    assert (held(one), held(two)) == (0, 0)


def test_a_test_case_keeps_its_connection(database: Database) -> None:
    """Its transaction is around each test, and a rollback around all."""
    wrapper = database()
    pids: list[int] = []

    class Inner(TestCase):
        databases = {ALIAS}  # noqa: RUF012

        def test_it(self) -> None:
            for _ in range(3):
                with transaction.atomic(ALIAS):
                    pids.append(ask(wrapper))

    result = Inner("test_it").run()
    assert result is not None
    assert result.wasSuccessful(), result.errors
    assert len(set(pids)) == 1


def test_a_wrapper_that_threads_share_keeps_its_connection(
    database: Database, release: str
) -> None:
    """As LiveServerTestCase does."""
    wrapper = database()
    wrapper.inc_thread_sharing()
    one = ask(wrapper)

    def other() -> int:
        connections[ALIAS] = wrapper
        pid: int = ask(connections[ALIAS])
        return pid

    assert Call(other).result(within=20) == one
    assert held(wrapper) == 1
    wrapper.dec_thread_sharing()
    assert held(wrapper) == kept(release)


def test_threads_of_async_code_hold_nothing_between_their_calls(
    database: Database, release: str
) -> None:
    wrapper = database()

    async def views() -> list[int]:
        call = sync_to_async(lambda: ask(connections[ALIAS]), thread_sensitive=False)
        return list(await asyncio.gather(*(call() for _ in range(3))))

    assert len(asyncio.run(views())) == 3
    if release == "transaction":
        assert held(wrapper) == 0


def test_the_signals_of_a_request_end_the_lease(database: Database) -> None:
    wrapper = database()
    ask(wrapper, "SET app.tenant = '7'")
    signals.request_finished.send(sender=None)
    assert held(wrapper) == 0


# Threads that live on


def test_a_thread_that_lives_on_recovers_from_a_restart(database: Database, release: str) -> None:
    """Its connection was closed while it did nothing: no call fails."""
    wrapper = database(OPTIONS=TWO)
    step, done = threading.Event(), threading.Event()

    def live_on() -> list[int]:
        wrapper = connections[ALIAS]
        first = ask(wrapper)
        done.set()
        assert step.wait(30)
        second = ask(wrapper)
        with transaction.atomic(ALIAS):
            return [first, second, ask(wrapper)]

    thread = Call(live_on)
    assert done.wait(20)
    database.server.terminate(APP)
    step.set()
    first, second, third = thread.result(within=30)
    assert first not in (second, third)
    assert ask(wrapper)


def test_a_connection_that_breaks_in_use_costs_a_thread_one_error(database: Database) -> None:
    wrapper = database()
    for _ in range(3):
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
            database.server.terminate(APP)
            with pytest.raises(OperationalError):
                cursor.execute("SELECT 1")
        assert ask(wrapper, "SELECT 1") == 1
        with transaction.atomic(ALIAS):
            assert ask(wrapper, "SELECT 1") == 1


def test_a_changed_session_that_is_gone_is_not_replaced_by_one_without_the_change(
    database: Database,
) -> None:
    """What ran as a tenant's role must not go on as the role that logged in."""
    wrapper = database()
    ask(wrapper, "SET ROLE tenant")
    database.server.terminate(APP)
    for _ in range(3):
        with pytest.raises(OperationalError, match=r"SET ROLE.*release\(\)"):
            ask(wrapper)
    release(ALIAS)
    assert ask(wrapper, "SELECT current_user") == "postgres"


def test_ten_threads_on_two_connections_never_see_anothers_tenant(database: Database) -> None:
    database(OPTIONS={"pool": {"min_size": 2, "max_size": 2, "timeout": 30}})
    ends = threading.Event()
    seen: list[tuple[str, str]] = []

    def tenant(name: str) -> int:
        wrapper, rounds = connections[ALIAS], 0
        while not ends.is_set():
            assert ask(wrapper, "SELECT current_setting('app.tenant', true)") in (None, "")
            ask(wrapper, "SELECT set_config('app.tenant', %s, false)", name)
            seen.extend((name, ask(wrapper, "SHOW app.tenant")) for _ in range(3))
            with transaction.atomic(ALIAS):
                seen.append((name, ask(wrapper, "SHOW app.tenant")))
            end_thread_request(wrapper)
            rounds += 1
        return rounds

    threads = [Call(tenant, f"t{n}") for n in range(10)]
    sleep(3)
    ends.set()
    assert all(thread.result(within=60) > 0 for thread in threads)
    assert [pair for pair in seen if pair[0] != pair[1]] == []


def end_thread_request(wrapper: Any) -> None:
    wrapper.close_if_unusable_or_obsolete()


# Threads outside of a request


def use_and_live_on(statement: str, stay: threading.Event) -> Callable[[], int]:
    def live_on() -> int:
        wrapper = connections[ALIAS]
        ask(wrapper, statement)
        stay.wait(30)
        pid: int = ask(wrapper)
        return pid

    return live_on


def test_threads_outside_of_a_request_do_not_starve_the_pool(
    database: Database, release: str
) -> None:
    """An executor's 12 threads on a pool of 4: all are served, and a request afterwards."""
    wrapper = database()
    stay = threading.Event()
    threads = [Call(use_and_live_on("SELECT 1", stay)) for _ in range(12)]
    wait_until(lambda: wrapper.pool.get_stats()["requests_num"] >= 12, "the queries")
    wait_until(lambda: not wrapper.pool.queue.waiters, "all to be served")
    if release == "transaction":
        wait_until(lambda: held(wrapper) == 0, "nothing to be held at rest")
    assert ask(wrapper)
    stay.set()
    assert all(thread.result(within=20) for thread in threads)


@pytest.mark.parametrize("statement", ["SET app.tenant = '7'", "BEGIN"])
def test_a_thread_outside_of_a_request_keeps_a_connection_that_it_needs(
    database: Database, statement: str
) -> None:
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 2.5}})
    stay = threading.Event()
    thread = Call(use_and_live_on(statement, stay))
    wait_until(lambda: held(wrapper) == 1, "the thread")
    with pytest.raises(OperationalError, match="the only connection is in use"):
        ask(wrapper)
    stay.set()
    assert thread.result(within=20)


@pytest.mark.parametrize("asks", [False, True])
def test_a_handle_is_never_that_of_a_lease_that_another_thread_is_ending(
    database: Database, asks: bool
) -> None:
    """The other thread is stopped at each of its steps, and this one takes the handle there."""
    wrapper = database(ABS_ORM_APP={"release": "request"})  # else nothing is held here
    kept = 0
    for at in range(200):
        ask(wrapper)
        lease = wrapper._held()
        reached, go_on = threading.Event(), threading.Event()

        def pause(reached: threading.Event = reached, go_on: threading.Event = go_on) -> None:
            reached.set()
            go_on.wait(0.03)  # not for ever: this thread may wait for the other one's end

        other = Call(paused, lambda lease=lease: lease.end_if_idle(), at, pause, BACKENDS)
        while other.is_alive() and not reached.wait(0.001):
            pass
        if not reached.is_set():  # there are no more steps
            break
        if asks:
            wrapper.ensure_connection()
        handle = wrapper.connection
        go_on.set()
        other.join(PATIENCE)
        assert not other.is_alive()
        assert not asks or handle is not None
        if handle is not None:
            assert held(wrapper) == 1, at
            assert handle._lease is wrapper._held(), at
            assert handle.info.backend_pid == ask(wrapper), at
            kept += not other.value
        wrapper.close()
    assert kept > 2
    assert at > 20
