"""What a statement leaves on its session: a table of cases, and the server's word for it."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abs_orm_app.backends import session_state
from abs_orm_app.backends.session_state import (
    CURSOR,
    LIBRARY,
    LISTENING,
    LOCK,
    OTHER,
    PREPARED,
    SETTING,
    TEMPORARY,
    UNSEEN,
    change_of,
)
from tests.support.servers import Server

CLEAN = [
    "SELECT 1",
    "select n from numbers where n > %s",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "(SELECT 1) UNION (SELECT 2)",
    "INSERT INTO numbers VALUES (1)",
    "UPDATE numbers SET n = 2",
    "DELETE FROM numbers WHERE n = 3; SELECT 1;",
    "VALUES (1), (2)",
    "TABLE numbers",
    "SHOW search_path",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE INSERT INTO numbers VALUES (4)",
    "CREATE TABLE IF NOT EXISTS template (temperature int)",
    "CREATE INDEX ON numbers (n)",
    "CREATE OR REPLACE VIEW temporary_view AS SELECT n FROM numbers",
    "CREATE OR REPLACE FUNCTION f() RETURNS int SET work_mem = '1MB' LANGUAGE sql"
    " AS $body$ SELECT 1; -- SET x $body$",
    "CREATE TEMP TABLE gone (n int) ON COMMIT DROP",
    "ANALYZE numbers",
    "VACUUM numbers",
    "TRUNCATE template",
    "NOTIFY channel, 'payload'",
    "SELECT pg_notify('channel', 'payload')",
    "UNLISTEN *",
    "BEGIN; LOCK TABLE numbers; COMMIT",
    "BEGIN; SET LOCAL work_mem = '1MB'; COMMIT",
    "BEGIN; SET LOCAL search_path = 'public'; COMMIT",
    "BEGIN; SELECT set_config('search_path', 'pg_catalog, public', true); COMMIT",
    "SELECT 'pg_temp'",
    "/*/ SET work_mem = '1MB' */ SELECT 1",
    "BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; SELECT 1; COMMIT",
    "BEGIN; SET CONSTRAINTS ALL DEFERRED; COMMIT",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "BEGIN; SELECT set_config('work_mem', '1MB', true); COMMIT",
    "BEGIN; SELECT set_config('app.tenant', upper(concat('a', 'b')), TRUE); ROLLBACK",
    "BEGIN; SELECT pg_advisory_xact_lock(7); COMMIT",
    "SELECT pg_try_advisory_xact_lock_shared(7)",
    "BEGIN; DECLARE c CURSOR FOR SELECT 1; FETCH c; CLOSE c; COMMIT",
    "BEGIN; SAVEPOINT s; RELEASE SAVEPOINT s; ROLLBACK",
    "SELECT 'SET work_mem = 1; PREPARE p', ' it''s; LISTEN x'",
    r"SELECT E'\'; SET work_mem = 1 --'",
    "SELECT 1 -- ; SET work_mem = '1MB'",
    "SELECT 1 /* ; SET work_mem = '1MB' /* ; LISTEN x */ ; LOAD 'x' */",
    '/* a trace */ SELECT 1 AS "set_config"',
    "/* SET a = 1 */ UPDATE numbers SET n = 5",
    'SELECT 1 AS "pg_advisory_lock", 2 AS "a ""; SET b"',
    "SELECT $$ ; SET work_mem = '1MB' $$, $x$ $$ ; LISTEN y $x$",
    "",
    " ; -- nothing",
]

PG_TEMP = (TEMPORARY, "search_path = pg_temp")
CHANGES = {
    "SET work_mem = '1MB'": (SETTING, "SET work_mem"),
    "set search_path to public, pg_catalog": (SETTING, "SET search_path"),
    "SET SESSION statement_timeout = 5000": (SETTING, "SET statement_timeout"),
    "SET app.tenant = '7'": (SETTING, "SET app.tenant"),
    "SET TIME ZONE 'Asia/Tokyo'": (SETTING, "SET TIME ZONE"),
    "SET ROLE pg_monitor": (SETTING, "SET ROLE"),
    "SET SESSION AUTHORIZATION somebody": (SETTING, "SET SESSION AUTHORIZATION"),
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY": (
        SETTING,
        "SET SESSION CHARACTERISTICS",
    ),
    "-- why\n/* not */ SET work_mem = '1MB'": (SETTING, "SET work_mem"),
    "/* ; */ SET work_mem = '1MB'": (SETTING, "SET work_mem"),
    "/*/ select 1 */ SET work_mem = '1MB'": (SETTING, "SET work_mem"),
    "/*/ select 1 /* */ select 1 */ SET work_mem = '1MB'": (SETTING, "SET work_mem"),
    "/* /*/ */ select 1 */ SET work_mem = '1MB'": (SETTING, "SET work_mem"),
    "/**/ SET work_mem = '1MB'": (SETTING, "SET work_mem"),
    "/* select 1 */ -- select 1\nSET work_mem = '1MB'": (SETTING, "SET work_mem"),
    "SELECT 1; SET work_mem = '1MB'": (SETTING, "SET work_mem"),
    "SELECT 'it''s; '; SET work_mem = '1MB'": (SETTING, "SET work_mem"),
    # To PostgreSQL these are names, with a dollar in them, and tags of a string.
    "SELECT 1 AS €$$; SET work_mem = '1MB'; SELECT 1 AS €$$": (SETTING, "SET work_mem"),
    "SELECT 1 AS \xa0$$; SET work_mem = '1MB'; SELECT 1 AS \xa0$$": (SETTING, "SET work_mem"),
    "SELECT $€$ $$ $€$; SET work_mem = '1MB'; SELECT $€$ $$ $€$": (SETTING, "SET work_mem"),
    "SELECT set_config('app.tenant', '7', false)": (SETTING, "set_config"),
    "SELECT pg_catalog.set_config ('app.tenant', '7', false) FROM numbers": (SETTING, "set_config"),
    "SELECT \"set_config\"('app.tenant', '7', false)": (SETTING, "set_config"),
    "SELECT set_config('app.tenant', '1', true), set_config('other.tenant', '2', 1 = 2)": (
        SETTING,
        "set_config",
    ),
    "UPDATE pg_settings SET setting = 'x' WHERE name = 'application_name'": (
        SETTING,
        "UPDATE pg_settings",
    ),
    "SET LOCAL work_mem = '1MB'; SET work_mem = '1MB'": (SETTING, "SET work_mem"),
    "RESET ALL": (SETTING, "RESET"),
    "DISCARD ALL": (SETTING, "DISCARD"),
    "CREATE TEMP TABLE t (n int)": (TEMPORARY, "CREATE TEMPORARY"),
    "CREATE TEMPORARY VIEW v AS SELECT 1": (TEMPORARY, "CREATE TEMPORARY"),
    "CREATE TABLE pg_temp.t (n int)": (TEMPORARY, "pg_temp"),
    "SELECT 1 AS n INTO TEMP t": (TEMPORARY, "CREATE TEMPORARY"),
    "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1": (TEMPORARY, "CREATE TEMPORARY"),
    "BEGIN; SET LOCAL search_path = pg_temp; CREATE TABLE t (n int); COMMIT": PG_TEMP,
    'BEGIN; SET LOCAL search_path TO "pg_temp", public; CREATE TABLE t (n int); COMMIT': PG_TEMP,
    "BEGIN; SET LOCAL SCHEMA 'pg_temp'; SELECT 1 AS n INTO t; COMMIT": PG_TEMP,
    "BEGIN; SELECT set_config('search_path', 'PG_TEMP', true); CREATE TABLE t (n int); COMMIT": (
        PG_TEMP
    ),
    "BEGIN; SELECT set_config('search_path', $$pg_temp$$, true); SELECT 1 AS n INTO t; COMMIT": (
        PG_TEMP
    ),
    "PREPARE p AS SELECT 1": (PREPARED, "PREPARE"),
    "DEALLOCATE ALL": (PREPARED, "DEALLOCATE"),
    "LISTEN channel": (LISTENING, "LISTEN"),
    "SELECT pg_advisory_lock(7)": (LOCK, "pg_advisory_lock"),
    "SELECT pg_try_advisory_lock_shared(7, 8)": (LOCK, "pg_try_advisory_lock_shared"),
    "WITH l AS (SELECT pg_advisory_lock(7)) SELECT * FROM l": (LOCK, "pg_advisory_lock"),
    "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT": (CURSOR, "DECLARE ... WITH HOLD"),
    "DO $$ BEGIN PERFORM 1; END $$": (UNSEEN, "DO"),
    "CALL p()": (UNSEEN, "CALL"),
}

LASTING = {
    "LOAD 'auto_explain'": (LIBRARY, "LOAD"),
    "SELECT setseed(0.5)": (OTHER, "setseed"),
    "SET SEED TO 0.5": (SETTING, "SET SEED"),
    "SET work_mem = '1MB'; SELECT setseed(0.5)": (OTHER, "setseed"),
    "SELECT dblink_connect('here', 'dbname=postgres')": (OTHER, "dblink_connect"),
    "SELECT pg_backup_start('b', true)": (OTHER, "pg_backup_start"),
    "SELECT pg_create_logical_replication_slot('s', 'pgoutput', true)": (OTHER, "replication slot"),
}

UNREADABLE = [
    "SELECT 1; SELECT 'no end",
    'SELECT 1; SELECT "no end',
    "SELECT 1; SELECT $x$ no end",
    "SELECT 1; SELECT 1 /* no /* end */",
    r"""SELECT U&"set\005fconfig"('a', 'b', false)""",
    "FROBNICATE 1",
]


@pytest.mark.parametrize("statement", CLEAN)
def test_a_statement_that_leaves_nothing_is_clean(statement: str) -> None:
    assert change_of(statement) is None


@pytest.mark.parametrize(("statement", "change"), CHANGES.items())
def test_a_statement_that_changes_the_session_is_found(
    statement: str, change: tuple[str, str]
) -> None:
    found = change_of(statement)
    assert found is not None
    assert (found.kind, found.what, found.lasts) == (*change, False)


@pytest.mark.parametrize(("statement", "change"), LASTING.items())
def test_a_change_that_no_statement_undoes_lasts(statement: str, change: tuple[str, str]) -> None:
    found = change_of(statement)
    assert found is not None
    assert (found.kind, found.what, found.lasts) == (*change, True)


@pytest.mark.parametrize("statement", UNREADABLE)
def test_a_statement_that_cannot_be_read_counts_as_a_change(statement: str) -> None:
    found = change_of(statement)
    assert found is not None
    assert found.kind == UNSEEN


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ('SET "app.x\n\x1b[2J" = 1', "SET app.x [2J"),
        (f'SET "app.{"x" * 100}" = 1', f"SET app.{'x' * 59}"),
        ("\x1b[2J", " ..."),
    ],
)
def test_a_name_that_would_command_a_terminal_is_harmless(statement: str, what: str) -> None:
    change = change_of(statement)
    assert change is not None
    assert change.what == what


def test_a_long_statement_of_many_rows_is_read_in_no_time() -> None:
    rows = ", ".join(["(%s, %s)"] * 50_000)
    began = time.thread_time()
    assert change_of(f"INSERT INTO numbers VALUES {rows}") is None
    assert change_of(f"INSERT INTO numbers VALUES {rows}; SET work_mem = '1MB'") is not None
    assert time.thread_time() - began < 5


def test_no_more_statements_are_remembered_than_fit() -> None:
    for number in range(3 * session_state._REMEMBERED):
        change_of(f"SELECT {number}")
    assert len(session_state._verdicts) <= session_state._REMEMBERED


# The server's word for it

SNAPSHOT = """
    SELECT 'setting ' || name, setting || coalesce(sourcefile, '') FROM pg_settings
    UNION ALL SELECT 'user', session_user || '/' || current_user
    UNION ALL SELECT 'prepared', name FROM pg_prepared_statements
    UNION ALL SELECT 'cursor', name FROM pg_cursors WHERE is_holdable
    UNION ALL SELECT 'listens', channel FROM pg_listening_channels() AS channel
    UNION ALL SELECT 'lock', objid::text FROM pg_locks
        WHERE locktype = 'advisory' AND pid = pg_backend_pid()
    UNION ALL SELECT 'temporary', relname FROM pg_class
        WHERE relnamespace = pg_my_temp_schema()
    UNION ALL SELECT 'tenant', current_setting('app.tenant', true)
    UNION ALL SELECT 'tenant', current_setting('other.tenant', true)"""


pytestmark = pytest.mark.server(
    roles=["somebody SUPERUSER"],
    sql=[
        "CREATE TABLE numbers AS SELECT 1000 AS n",
        "CREATE TABLE IF NOT EXISTS template (temperature int)",
        "CREATE PROCEDURE p() LANGUAGE sql AS 'SELECT 1'",
    ],
)


def state_of(connection: psycopg.Connection[Any]) -> set[Any]:
    """What another statement could find, but for a setting that was only named: '' is nothing."""
    rows = connection.execute(SNAPSHOT).fetchall()
    return {row for row in rows if row[1] not in (None, "")}


def leaves(server: Server, statement: str) -> set[Any] | None:
    """What is other after the statement than before; None if the server refused it."""
    with psycopg.connect(server.conninfo, autocommit=True, prepare_threshold=None) as connection:
        before = state_of(connection)
        try:
            connection.execute(statement)
        except psycopg.Error:
            if not connection.closed:
                connection.execute("ROLLBACK")
                return state_of(connection) ^ before or None
        connection.execute("COMMIT")  # the statement may have left a transaction open
        return state_of(connection) ^ before


@pytest.mark.parametrize("statement", [text for text in CLEAN if "%s" not in text])
def test_the_server_finds_nothing_after_a_clean_statement(shared: Server, statement: str) -> None:
    assert leaves(shared, statement) == set()


UNDONE = ("RESET", "DISCARD", "DEALLOCATE", "DO", "CALL")  # of these nothing can be seen here


@pytest.mark.parametrize("statement", [s for s in CHANGES if not s.startswith(UNDONE)])
def test_the_server_finds_something_after_a_change(shared: Server, statement: str) -> None:
    """The table of changes is not a table of false alarms."""
    assert leaves(shared, statement)


PIECES = [
    *(text for text in CLEAN if "%s" not in text and "VACUUM" not in text),
    *(text for text in CHANGES if not text.startswith("SET SESSION AUTHORIZATION")),
]
GLUE = ["; ", ";", " ;\n-- x\n", "; /* ; */ ", "\n;\n"]
SHAPES = [
    "{}",
    "/* {} */ SELECT 1",
    "SELECT $q$ {} $q$",
    "EXPLAIN {}",
    "BEGIN; {}; ROLLBACK",
    "BEGIN; {}; COMMIT",
    'SELECT 1 AS "a"; {}',
    "  (({}))",
    "WITH w AS ({}) SELECT * FROM w",
    "DO $do$ BEGIN {}; END $do$",
    "-- {}\nSELECT 1",
    "/*/ SELECT 1 */ {}",
    "/* /*/ SELECT 1 */ SELECT 1 */ {}",
]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=3),
    glue=st.sampled_from(GLUE),
    shape=st.sampled_from(SHAPES),
    loud=st.booleans(),
)
def test_a_statement_that_counts_as_clean_leaves_nothing(
    module_server: Server, pieces: list[str], glue: str, shape: str, loud: bool
) -> None:
    statement = shape.replace("{}", glue.join(pieces))
    if loud:
        statement = statement.swapcase()
    if change_of(statement) is None:
        assert not leaves(module_server, statement), statement
