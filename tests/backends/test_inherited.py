"""What one request leaves on its session the next does not find, and the same request does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.databases import ALIAS, ONE, TWO, Database, ask, end_request, held
from tests.support.inherited import KINDS, SETUP, Kind, Outcome, outcome
from tests.support.servers import wait_until

pytestmark = pytest.mark.server(roles=["tenant"], sql=SETUP)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.hidden], ids=lambda k: k.name)
def test_nothing_is_lost_in_a_request_and_nothing_left_to_the_next(
    database: Database, kind: Kind
) -> None:
    database(OPTIONS=TWO)
    assert outcome(kind, ALIAS, end_request) == Outcome(lost=False, left=False)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_reset_always_cleans_changes_that_cannot_be_recognised(
    database: Database, kind: Kind
) -> None:
    if kind.name == "`setseed()`" or kind.name == "`LOAD`":
        return  # seen, and replaced
    database(OPTIONS=TWO, ABS_ORM_APP={"reset": "always"})
    assert not outcome(kind, ALIAS, end_request).left


def mark(wrapper: Any) -> None:
    """As code that sets a connection up once: the next holder's is not set up any more."""
    wrapper.connection.is_set_up = True


def hear_notices(wrapper: Any) -> None:
    wrapper.connection.pgconn.notice_handler = heard.append


heard: list[Any] = []


@pytest.mark.parametrize("change", [mark, hear_notices])
def test_what_a_project_sets_on_psycopgs_objects_is_not_left(
    database: Database, change: Callable[[Any], None]
) -> None:
    wrapper = database(OPTIONS=ONE)
    one = ask(wrapper)
    change(wrapper)
    end_request()
    ask(wrapper, "DO $$ BEGIN RAISE WARNING 'of another request'; END $$")
    assert not hasattr(wrapper.connection, "is_set_up")
    assert heard == []
    assert ask(wrapper) == one


def test_cleaning_leaves_each_attribute_of_a_new_connection(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    one = ask(wrapper)
    end_request()
    connection = wrapper.pool.idle[0]
    before = dict.fromkeys(vars(connection))
    with wrapper.cursor() as cursor:
        cursor.execute("SET statement_timeout = 7000")
    end_request()
    assert ask(wrapper) == one
    assert before.keys() <= vars(connection).keys()


def test_what_is_done_with_a_connection_of_the_pool_itself_is_not_left(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    one = ask(wrapper)
    end_request()
    with wrapper.pool.connection() as connection:
        connection.execute("SET ROLE tenant")
        connection.row_factory = psycopg.rows.dict_row
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT current_user, pg_backend_pid()")
        assert cursor.fetchone() == ("postgres", one)


def test_reset_never_leaves_it_all(database: Database) -> None:
    wrapper = database(OPTIONS=TWO, ABS_ORM_APP={"reset": "never"})
    found = {kind.name for kind in KINDS[:5] if outcome(kind, ALIAS, end_request).left}
    assert found == {kind.name for kind in KINDS[:5]}
    assert wrapper.pool.get_stats().get("connections_cleaned", 0) == 0


def test_a_cleaned_connection_is_as_the_alias_sets_it(database: Database) -> None:
    options = {**ONE, "assume_role": "tenant", "options": "-c statement_timeout=4321"}
    wrapper = database(OPTIONS=options, TIME_ZONE="Europe/Paris")
    one = ask(wrapper)
    state = "SELECT current_user || ' ' || current_setting('TimeZone')"
    state += " || ' ' || current_setting('statement_timeout')"
    expected = ask(wrapper, state)
    assert expected == "tenant Europe/Paris 4321ms"
    ask(wrapper, "RESET ROLE; SET TIME ZONE 'Asia/Tokyo'; SET statement_timeout = 0")
    end_request()
    assert ask(wrapper, state) == expected
    assert ask(wrapper) == one


def test_the_projects_own_reset_keeps_the_role_and_the_time_zone(database: Database) -> None:
    def reset(connection: object) -> None:
        connection.execute("DISCARD ALL")  # type: ignore[attr-defined]

    options = {"pool": {**ONE["pool"], "reset": reset}, "assume_role": "tenant"}
    wrapper = database(OPTIONS=options, TIME_ZONE="Asia/Tokyo")
    for _ in range(3):
        assert ask(wrapper, "SELECT current_user") == "tenant"
        assert ask(wrapper, "SHOW timezone") == "Asia/Tokyo"
        end_request()


def test_a_request_that_sets_nothing_pays_no_message(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    for _ in range(5):
        ask(wrapper, "SELECT 1")
        end_request()
    assert wrapper.pool.get_stats().get("connections_cleaned", 0) == 0
    last = "SELECT query FROM pg_stat_activity WHERE application_name = 'pool-under-test'"
    with database.server.admin() as admin:
        assert admin.execute(last).fetchall() == [("SELECT 1",)]


def test_the_cleaning_is_not_in_the_requests_time(database: Database) -> None:
    """Another connection is there: the next request does not wait for the cleaning."""
    wrapper = database(OPTIONS=TWO)
    wrapper.ensure_connection()
    wait_until(lambda: wrapper.pool.get_stats()["pool_available"] == 1, "two connections")
    ask(wrapper, "SET app.tenant = '7'")
    end_request()
    queued = wrapper.pool.get_stats().get("requests_queued", 0)
    assert ask(wrapper, "SELECT current_setting('app.tenant', true)") in (None, "")
    assert wrapper.pool.get_stats().get("requests_queued", 0) == queued


def test_a_connection_that_cannot_be_cleaned_is_replaced(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    one = ask(wrapper)
    ask(wrapper, "SET app.tenant = '7'")
    pid = ask(wrapper)
    assert pid == one or held(wrapper)
    database.server.terminate("pool-under-test")
    end_request()
    assert ask(wrapper, "SELECT current_setting('app.tenant', true)") in (None, "")
    assert ask(wrapper) != pid
