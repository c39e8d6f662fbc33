"""psycopg's connection in the hands of a project: reading keeps nothing, using keeps the lease."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.db import connection as default_connection
from django.db import connections, transaction

from abs_orm_app.backends import release
from tests.support.databases import ALIAS, ONE, Database, ask, end_request, held, kept, pin
from tests.support.servers import Server

pytestmark = pytest.mark.server(sql=["CREATE TABLE rows (n int)"])


def enter(manager: Any) -> None:
    with manager:
        pass


def read_status(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    """As django-pghistory and django-pgtrigger do."""
    cursor = context["cursor"]
    assert cursor.connection.info.transaction_status is not None
    assert not cursor.connection.closed
    return execute(sql, params, many, context)


def test_reading_a_status_in_a_wrapper_of_execute_keeps_and_cleans_nothing(
    database: Database, release: str
) -> None:
    wrapper = database(OPTIONS=ONE)
    with wrapper.execute_wrapper(read_status):
        for _ in range(20):
            ask(wrapper)
            assert pin(wrapper) is None
            assert held(wrapper) == kept(release)
            with transaction.atomic(ALIAS):
                ask(wrapper)
            assert held(wrapper) == kept(release)
            end_request()
    assert wrapper.pool.statistics.cleaned == 0


def test_the_servers_process_can_be_read_between_two_queries(
    database: Database, release: str
) -> None:
    wrapper = database(OPTIONS=ONE)
    assert not wrapper.connection  # as in the stock engine, before the first query
    one = ask(wrapper)
    assert wrapper.connection.info.backend_pid == one
    assert wrapper.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert (wrapper.connection.closed, wrapper.connection.autocommit) == (False, True)
    assert held(wrapper) == kept(release)
    assert ask(wrapper) == one
    wrapper.close()
    assert wrapper.connection is None


def test_a_handle_that_is_kept_keeps_the_connection_and_one_that_is_dropped_does_not(
    database: Database, release: str
) -> None:
    wrapper = database()
    one = ask(wrapper)
    handle = wrapper.connection
    assert wrapper.connection is handle
    pid = handle.info.backend_pid
    for _ in range(3):
        assert ask(wrapper) == pid
    assert held(wrapper) == 1
    assert {h.pin.reason for h in wrapper.pool.holders() if h.pin} == {"handle"}
    del handle
    assert held(wrapper) == kept(release)
    assert pin(wrapper) is None
    assert one


def test_a_handle_that_is_used_keeps_the_session_until_the_request_ends_and_it_is_cleaned(
    database: Database,
) -> None:
    wrapper = database(OPTIONS=ONE)
    ask(wrapper)
    wrapper.connection.execute("SET app.tenant = '7'")
    assert held(wrapper) == 1
    assert ask(wrapper, "SHOW app.tenant") == "7"
    assert pin(wrapper) == "the connection's own handle"
    end_request()
    assert held(wrapper) == 0
    assert ask(wrapper, "SELECT current_setting('app.tenant', true)") in (None, "")


def test_a_handle_is_taken_for_psycopgs_connection(database: Database) -> None:
    wrapper = database()
    ask(wrapper)
    handle = wrapper.connection
    assert isinstance(handle, psycopg.Connection)
    assert repr(handle).startswith("<psycopg.Connection [IDLE]")
    assert handle.connection is handle
    assert psycopg.sql.Literal("a").as_string(handle) == "'a'"
    with psycopg.ClientCursor(handle) as cursor:
        assert cursor.mogrify("%s", [7]) == "7"
    info = psycopg.types.TypeInfo.fetch(handle, "text")
    assert info is not None
    info.register(handle)
    with handle.transaction():
        assert handle.execute("SELECT 7").fetchone() == (7,)
    assert not hasattr(handle, "get_dsn_parameters")


def test_a_handle_does_not_touch_the_connection_of_the_next_holder(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    ask(wrapper)
    handle = wrapper.connection
    release(ALIAS)
    with transaction.atomic(ALIAS):
        ask(wrapper)
        for use in (
            lambda: handle.execute("ROLLBACK"),
            lambda: handle.rollback(),
            lambda: handle.info,
            lambda: setattr(handle, "autocommit", True),
        ):
            with pytest.raises(psycopg.InterfaceError, match="was released"):
                use()
        assert handle.closed
        assert wrapper.connection is not handle
        assert held(wrapper) == 1


INSERT = "INSERT INTO rows VALUES (7) RETURNING n"
COPY = "COPY rows FROM STDIN"
# What a request makes, and what it then does with it too late.
LATE_USES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "cursor": (lambda wrapper: wrapper.connection.cursor(), lambda cursor: cursor.execute(INSERT)),
    "server-side cursor": (
        lambda wrapper: wrapper.connection.cursor("mine"),
        lambda cursor: cursor.execute("SELECT 1"),
    ),
    "execute": (lambda wrapper: wrapper.connection.execute, lambda execute: execute(INSERT)),
    "commit": (lambda wrapper: wrapper.connection.commit, lambda commit: commit()),
    "rollback": (lambda wrapper: wrapper.connection.rollback, lambda rollback: rollback()),
    "close": (lambda wrapper: wrapper.connection.close, lambda close: close()),
    "cancel": (lambda wrapper: wrapper.connection.cancel_safe, lambda cancel: cancel()),
    "transaction": (lambda wrapper: wrapper.connection.transaction(), enter),
    "pipeline": (lambda wrapper: wrapper.connection.pipeline(), enter),
    "notifies": (lambda wrapper: wrapper.connection.notifies(timeout=0), list),
    "stream": (lambda wrapper: wrapper.connection.cursor().stream(INSERT), list),
    "copy": (lambda wrapper: wrapper.connection.cursor().copy(COPY), enter),
    "stream of Django's cursor": (lambda wrapper: wrapper.cursor().stream(INSERT), list),
    "copy of Django's cursor": (lambda wrapper: wrapper.cursor().copy(COPY), enter),
}


@pytest.mark.parametrize(("make", "use"), LATE_USES.values(), ids=LATE_USES)
def test_what_comes_from_a_handle_or_a_cursor_does_not_touch_the_next_holder(
    database: Database, make: Callable[[Any], Any], use: Callable[[Any], Any]
) -> None:
    """A timer that cancels a statement fires too late; a generator runs after its request."""
    wrapper = database(OPTIONS=ONE)
    ask(wrapper)
    made = make(wrapper)
    wrapper.close()
    with transaction.atomic(ALIAS):
        ask(wrapper, "INSERT INTO rows VALUES (1)")
        with pytest.raises(psycopg.InterfaceError, match="was released"):
            use(made)
        assert ask(wrapper, "SELECT count(*) FROM rows") == 1
        transaction.set_rollback(True, ALIAS)


def test_the_info_of_a_handle_tells_nothing_of_the_next_holder(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    ask(wrapper)
    info = wrapper.connection.info
    assert info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    release(ALIAS)
    with transaction.atomic(ALIAS):
        ask(wrapper)
        for name in ("transaction_status", "backend_pid"):
            with pytest.raises(psycopg.InterfaceError, match="was released"):
                getattr(info, name)


def test_what_is_done_with_the_handle_of_an_info_is_cleaned(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    ask(wrapper)
    wrapper.connection.info.pgconn.exec_(b"SET app.tenant = '7'")
    assert ask(wrapper, "SHOW app.tenant") == "7"
    end_request()
    assert ask(wrapper, "SELECT current_setting('app.tenant', true)") in (None, "")


def test_a_database_is_usable_between_two_queries(database: Database, release: str) -> None:
    wrapper = database()
    assert not wrapper.is_usable()  # as in the stock engine, before the first query
    ask(wrapper)
    assert wrapper.is_usable()
    assert held(wrapper) == kept(release)
    assert pin(wrapper) is None
    wrapper.close()
    assert not wrapper.is_usable()


def test_a_database_that_is_gone_is_not_usable(database: Database, server: Server) -> None:
    database.server = server
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 1}})
    ask(wrapper)
    server.stop()
    assert not wrapper.is_usable()


def test_code_that_looks_whether_it_is_connected_sees_what_it_sees_in_stock(
    database: Database,
) -> None:
    """`if connection.connection and not connection.is_usable(): connection.close()`"""
    wrapper = database()
    for _ in range(2):
        if wrapper.connection and not wrapper.is_usable():
            raise AssertionError
        ask(wrapper)
    assert default_connection.vendor == connections[ALIAS].vendor
