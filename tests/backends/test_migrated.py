"""A migration changes what older sessions have cached: one wave fails, and no later request.

The errors are of PostgreSQL 14 to 18. What the project's own statements do wrong costs no
connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Barrier, Event
from typing import Any

import psycopg
import pytest
from django.core.signals import request_finished
from django.db import DatabaseError, connections

from tests.support.databases import ALIAS, Database, ask
from tests.support.pools import Call
from tests.support.servers import wait_until

SIZE = 8
ROOM = 60.0  # seconds
PREPARED = {"server_side_binding": True, "prepare_threshold": 0}
PID = "SELECT pg_backend_pid()"


@dataclass(frozen=True)
class Case:
    """What a session caches, what changes it, and the error."""

    sqlstate: str
    create: str
    statement: str
    migrate: str = ""
    before: str = ""  # in each session, after the statement
    warm: bool = True  # each session executes the statement before
    options: dict[str, Any] = field(default_factory=dict)


TRIGGER = Case(
    "42804",
    """CREATE TABLE item (id int, qty int);
       CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
       $$ BEGIN IF NEW.qty > 5 THEN NEW.id := NEW.qty; END IF; RETURN NEW; END $$;
       CREATE TRIGGER touch BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION touch()""",
    "INSERT INTO item VALUES (1, 7)",
    "ALTER TABLE item ALTER COLUMN qty TYPE bigint",
)
CASES = {
    "a column that a trigger reads": TRIGGER,
    "the rows of a prepared statement": Case(
        "0A000",
        "CREATE TABLE item (id int)",
        "SELECT * FROM item",
        "ALTER TABLE item ADD COLUMN qty int",
        options=PREPARED,
    ),
    "a type made anew": Case(
        "XX000",
        """CREATE TYPE mood AS ENUM ('ok');
           CREATE FUNCTION mood() RETURNS text LANGUAGE plpgsql AS
           $$ DECLARE m mood; BEGIN m := 'ok'; RETURN m::text; END $$""",
        "SELECT mood()",
        "DROP TYPE mood CASCADE; CREATE TYPE mood AS ENUM ('ok', 'bad')",
    ),
    "a prepared statement that is gone": Case(
        "26000",
        """CREATE FUNCTION forget() RETURNS void LANGUAGE plpgsql AS
           $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$""",
        "SELECT 1 AS kept",
        before="SELECT forget()",
        options=PREPARED,
    ),
    "a prepared statement that exists already": Case(
        "42P05",
        """CREATE FUNCTION squat() RETURNS void LANGUAGE plpgsql AS
           $$ BEGIN FOR n IN 1..9 LOOP EXECUTE format('PREPARE _pg3_%s AS SELECT 1', n); END LOOP;
           END $$""",
        "SELECT 2 AS kept",
        before="SELECT squat()",
        warm=False,
        options=PREPARED,
    ),
}


class Workers:
    """Threads with a request each, at the same time, so that each has its own connection."""

    def __init__(self, wrapper: Any) -> None:
        self.pool = wrapper.pool

    def all_execute(self, *statements: str) -> tuple[set[int], list[str]]:
        """The backends' pids, and the SQLSTATEs of those that failed."""
        barrier = Barrier(SIZE)
        calls = [Call(self._request, barrier, statements) for _ in range(SIZE)]
        found = [call.result(within=2 * ROOM) for call in calls]
        return {pid for pid, _ in found}, [error for _, error in found if error]

    def _request(self, barrier: Barrier, statements: tuple[str, ...]) -> tuple[int, str]:
        with suppress(DatabaseError), connections[ALIAS].cursor() as cursor:
            # Not prepared: this asks only which connection it is.
            cursor.cursor.execute(PID, prepare=False)
            pid = cursor.fetchone()[0]
            error = ""
            barrier.wait(ROOM)
            try:
                for statement in statements:
                    cursor.execute(statement)
            except DatabaseError as caught:
                error = sqlstate(caught)
            barrier.wait(ROOM)
        request_finished.send(type(self))
        return pid, error

    def opened(self) -> int:
        """The number of connections opened so far, when the pool has its size and is at rest."""
        wait_until(lambda: len(self.pool.idle) == SIZE, "the pool to have its size")
        return int(self.pool.get_stats()["connections_num"])


def sqlstate(error: BaseException) -> str:
    cause = error.__cause__
    assert isinstance(cause, psycopg.Error), error
    return cause.sqlstate or repr(cause)


@contextmanager
def migrated(database: Database, case: Case) -> Iterator[tuple[Any, Workers, set[int], int]]:
    """A pool whose sessions are all older than the migration."""
    with database.server.admin() as admin:
        admin.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        admin.execute(case.create)
        pool = {"min_size": SIZE, "max_size": SIZE, "timeout": ROOM}
        wrapper = database(OPTIONS={"pool": pool, **case.options})
        wrapper.pool.open(wait=True)
        workers = Workers(wrapper)
        statements = [case.statement] * 2 if case.warm else []
        old, errors = workers.all_execute(*statements, *([case.before] if case.before else []))
        assert (len(old), errors) == (SIZE, [])
        if case.migrate:
            admin.execute(case.migrate)
    yield wrapper, workers, old, workers.opened()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_request_fails_and_no_later_one(database: Database, case: Case) -> None:
    with migrated(database, case) as (wrapper, workers, old, opened):
        with pytest.raises(DatabaseError) as caught:
            ask(wrapper, case.statement)
        assert sqlstate(caught.value) == case.sqlstate
        wrapper.close()
        for _ in range(3):
            pids, errors = workers.all_execute(case.statement)
            assert errors == []
            assert pids.isdisjoint(old)
        assert workers.opened() == opened + SIZE, "each was replaced once"


def test_requests_at_the_same_time_fail_in_one_wave(database: Database) -> None:
    with migrated(database, TRIGGER) as (_, workers, old, opened):
        pids, errors = workers.all_execute(TRIGGER.statement)
        assert pids == old
        assert errors == [TRIGGER.sqlstate] * SIZE
        for _ in range(3):
            pids, errors = workers.all_execute(TRIGGER.statement)
            assert errors == []
            assert pids.isdisjoint(old)
        assert workers.opened() == opened + SIZE, "each was replaced once"


def test_a_connection_that_is_in_use_meanwhile_is_replaced_at_its_return(
    database: Database,
) -> None:
    go_on, holds = Event(), Event()

    def hold() -> int:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute(PID)
            pid: int = cursor.fetchone()[0]
            holds.set()
            assert go_on.wait(ROOM)
        request_finished.send(None)
        return pid

    with migrated(database, TRIGGER) as (wrapper, workers, _, opened):
        call = Call(hold)
        assert holds.wait(ROOM)
        with pytest.raises(DatabaseError):
            ask(wrapper, TRIGGER.statement)
        wrapper.close()
        go_on.set()
        held = call.result(within=ROOM)
        pids, errors = workers.all_execute(TRIGGER.statement)
        assert errors == []
        assert held not in pids
        assert workers.opened() == opened + SIZE


# What is no fault of the session

WRONG = {
    "a value of another type": ("42804", "INSERT INTO item VALUES ('a'::text)"),
    "types that cannot be matched": ("42804", "SELECT 1 UNION SELECT 'a'::text"),
    "a function's rows": ("42804", "SELECT * FROM rows()"),
    "what does not exist in SQL": ("0A000", "SELECT count(*) FROM item FOR UPDATE"),
    "a column that a view uses": ("0A000", "ALTER TABLE item ALTER COLUMN id TYPE bigint"),
    "a statement that the project has not prepared": ("26000", "EXECUTE nothing"),
    "a statement that the project has prepared": ("42P05", "PREPARE p AS SELECT 1"),
}


@pytest.mark.parametrize(("expected", "statement"), WRONG.values(), ids=WRONG)
def test_a_wrong_statement_costs_no_connection(
    database: Database, expected: str, statement: str
) -> None:
    with database.server.admin() as admin:
        admin.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        admin.execute("CREATE TABLE item (id int); CREATE VIEW items AS SELECT id FROM item")
        admin.execute(
            "CREATE FUNCTION rows() RETURNS TABLE (n int) LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN QUERY SELECT 'a'::text; END $$"
        )
    wrapper = database(OPTIONS={"pool": {"min_size": 2, "max_size": 2, "timeout": 20}})
    wrapper.pool.open(wait=True)
    opened = wrapper.pool.get_stats()["connections_num"]
    with wrapper.cursor() as cursor:
        cursor.execute("PREPARE p AS SELECT 1")
        with pytest.raises(DatabaseError) as caught:
            cursor.execute(statement)
    assert sqlstate(caught.value) == expected
    wrapper.close()
    wait_until(lambda: len(wrapper.pool.idle) == 2, "both connections")
    assert ask(wrapper)
    assert wrapper.pool.get_stats()["connections_num"] == opened


def test_an_error_that_a_new_session_meets_as_well_costs_a_wave_at_most(database: Database) -> None:
    """The server reports the same for a function whose record has now this type, now that."""
    with database.server.admin() as admin:
        admin.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        admin.execute(
            """CREATE FUNCTION changing(n int) RETURNS int LANGUAGE plpgsql AS
               $$ DECLARE r record; BEGIN
               IF n = 1 THEN SELECT 1 AS v INTO r; ELSE SELECT 'a'::text AS v INTO r; END IF;
               IF r.v IS NULL THEN RETURN 0; END IF; RETURN 1; END $$"""
        )
    wrapper = database(OPTIONS={"pool": {"min_size": 4, "max_size": 4, "timeout": 20}})
    wrapper.pool.open(wait=True)
    opened = wrapper.pool.get_stats()["connections_num"]
    for _ in range(30):
        with pytest.raises(DatabaseError) as caught:
            ask(wrapper, "SELECT changing(1), changing(2)")
        assert sqlstate(caught.value) == "42804"
        wrapper.close()
    wait_until(lambda: len(wrapper.pool.idle) == 4, "the pool to have its size")
    assert wrapper.pool.get_stats()["connections_num"] <= opened + 2 * 4
