"""Django's own semantics hold on the engine with the pool."""

from __future__ import annotations

import threading
from datetime import UTC
from time import sleep
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.base import BaseHandler
from django.db import DatabaseError, IntegrityError, OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import override_settings

from abs_orm_app.pool.pool import HardenedPool
from tests.support.bytecodes import BACKENDS, sweep
from tests.support.databases import ALIAS, ONE, Database, ask
from tests.support.pools import APP, Call, uncollected
from tests.support.projects import compared_with_stock_engine, python
from tests.support.querying_engine.base import DatabaseWrapper as QueryingWrapper
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.server(roles=["reporting"])


def test_the_engine_uses_the_hardened_pool_named_for_its_alias(database: Database) -> None:
    wrapper = database()
    ask(wrapper)
    assert isinstance(wrapper.pool, HardenedPool)
    assert wrapper.pool.name == ALIAS
    assert wrapper.pool.pre_ping


def test_without_the_pool_option_it_is_djangos_own_engine(database: Database) -> None:
    wrapper = database(OPTIONS={"pool": None}, CONN_MAX_AGE=60)
    ask(wrapper)
    assert wrapper.pool is None


def test_a_pool_with_persistent_connections_is_refused(database: Database) -> None:
    wrapper = database(CONN_MAX_AGE=60)
    with pytest.raises(ImproperlyConfigured, match="persistent connections"):
        ask(wrapper)
    connections.databases[ALIAS]["CONN_MAX_AGE"] = wrapper.settings_dict["CONN_MAX_AGE"] = 0


def test_threads_share_one_pool_however_many_come_first(database: Database) -> None:
    database()
    pools: set[int] = set()

    def first() -> None:
        ask(connections[ALIAS])
        pools.add(id(connections[ALIAS].pool))  # type: ignore[attr-defined]
        connections[ALIAS].close()

    for call in [Call(first) for _ in range(12)]:
        call.result(within=10)
    assert len(pools) == 1


def test_the_pool_outlives_the_thread_that_built_it_and_gets_its_connection_back(
    database: Database,
) -> None:
    """The pool must not keep the wrapper of the thread that built it alive."""
    database(OPTIONS=ONE)

    def end_without_closing() -> None:
        ask(connections[ALIAS])

    Call(end_without_closing).result(within=10)
    assert ask(connections[ALIAS])


def test_an_exhausted_pool_is_djangos_operational_error(database: Database) -> None:
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 0.2}})
    wrapper.pool.open(wait=True)
    with wrapper.cursor():
        call = Call(lambda: ask(connections[ALIAS]))
        with pytest.raises(OperationalError, match="the only connection is in use"):
            call.result(within=20)


def test_atomic_blocks_commit_and_roll_back(database: Database) -> None:
    wrapper = database()
    with wrapper.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS atoms; CREATE TABLE atoms (n int UNIQUE)")
    with transaction.atomic(using=ALIAS):
        ask(wrapper, "INSERT INTO atoms VALUES (1) RETURNING n")
        with pytest.raises(IntegrityError), transaction.atomic(using=ALIAS):
            ask(wrapper, "INSERT INTO atoms VALUES (1) RETURNING n")
    with pytest.raises(DatabaseError), transaction.atomic(using=ALIAS):
        ask(wrapper, "INSERT INTO atoms VALUES (2) RETURNING 1 / 0")
    wrapper.close()
    assert ask(wrapper, "SELECT count(*) FROM atoms") == 1


def test_server_side_binding_and_isolation_level_reach_the_connection(database: Database) -> None:
    wrapper = database(
        OPTIONS={
            "server_side_binding": True,
            "isolation_level": psycopg.IsolationLevel.SERIALIZABLE,
        }
    )
    wrapper.ensure_connection()
    assert wrapper.connection.cursor_factory.__name__ == "ServerBindingCursor"
    with transaction.atomic(using=ALIAS):
        assert ask(wrapper, "SHOW transaction_isolation") == "serializable"


@compared_with_stock_engine("to set the role it asks the pool, which waits for the role")
def test_assume_role_is_set_on_each_connection(
    database: Database, shared: Server, engine: str
) -> None:
    options = {"assume_role": "reporting", "application_name": engine, "pool": {"timeout": 3}}
    wrapper = database(ENGINE=engine, OPTIONS=options)
    assert ask(wrapper, "SELECT current_user") == "reporting"
    wrapper.close()
    shared.terminate(engine)
    assert ask(wrapper, "SELECT current_user") == "reporting"


def test_a_changed_time_zone_reaches_connections_that_were_open_before(database: Database) -> None:
    wrapper = database()
    with override_settings(USE_TZ=False, TIME_ZONE="Europe/Paris"):
        assert ask(wrapper, "SHOW timezone") == "Europe/Paris"
    assert ask(wrapper, "SHOW timezone") == "UTC"
    wrapper.close()
    assert ask(wrapper, "SHOW timezone") == "UTC"


def test_a_time_zone_that_is_changed_on_the_wrapper_reaches_the_next_cursor(
    database: Database,
) -> None:
    """As Django's own tests change it."""
    wrapper = database()
    assert ask(wrapper, "SELECT CURRENT_TIMESTAMP").tzinfo == UTC
    wrapper.settings_dict["TIME_ZONE"] = "Europe/Paris"
    del wrapper.timezone
    assert str(ask(wrapper, "SELECT CURRENT_TIMESTAMP").tzinfo) == "Europe/Paris"


def test_a_changed_database_name_is_not_served_by_the_old_pool(
    database: Database, shared: Server
) -> None:
    """Django's test runner changes the name of an alias that an app may have used already."""
    wrapper = database()
    assert ask(wrapper, "SELECT current_database()") == "postgres"
    wrapper.close()
    wrapper.settings_dict["NAME"] = "template1"
    assert ask(wrapper, "SELECT current_database()") == "template1"
    wrapper.close()
    wait_until(lambda: shared.sessions(APP) == 1, "the old pool to be closed")


def test_close_pool_closes_every_session_and_the_next_use_opens_a_new_one(
    database: Database, shared: Server
) -> None:
    wrapper = database()
    ask(wrapper)
    wrapper.close()
    wrapper.close_pool()
    wait_until(lambda: shared.sessions(APP) == 0, "the sessions to end")
    wrapper.close_pool()
    assert ask(wrapper)


def test_close_pool_closes_the_connections_of_threads_that_have_ended(
    database: Database, shared: Server
) -> None:
    """As a test run's threads leave them; then the test database cannot be dropped."""
    wrapper = database()
    together = threading.Barrier(3)

    def connect() -> None:
        connections[ALIAS].ensure_connection()
        together.wait(20)

    with uncollected():
        for call in [Call(connect) for _ in range(3)]:
            call.result(within=20)
        assert shared.sessions(APP) >= 3
        wrapper.close()
        wrapper.close_pool()
        wait_until(lambda: shared.sessions(APP) == 0, "the sessions to end")


def test_requests_that_wait_when_the_pool_is_closed_go_on_with_the_next(database: Database) -> None:
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 2, "timeout": 10}})
    over = threading.Event()

    def work() -> int:
        done = 0
        while not over.is_set():
            ask(connections[ALIAS], "SELECT pg_sleep(0.002)")
            connections[ALIAS].close()
            done += 1
        return done

    calls = [Call(work) for _ in range(8)]
    for _ in range(20):
        sleep(0.03)
        wrapper.close_pool()
    over.set()
    assert all(call.result(within=15) for call in calls)


def test_the_pool_may_be_closed_at_any_step_of_a_query(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)

    def work() -> None:
        ask(wrapper)
        wrapper.close()

    def close() -> None:
        Call(wrapper.close_pool).result(within=20)

    def check(_: int) -> None:
        close()  # the next one is opened by the query

    assert sweep(work, close, f"{BACKENDS}/leasing.py", check) > 50


def test_an_engine_that_queries_when_a_wrapper_is_made(database: Database) -> None:
    """As django-tenants does with EXTRA_SET_TENANT_METHOD_PATH: once a wrapper, and no more."""
    QueryingWrapper.made = 0
    wrapper = database(ENGINE="tests.support.querying_engine", OPTIONS=ONE)
    assert ask(wrapper)
    assert wrapper.pool.get_stats()["pool_size"] >= 1
    assert QueryingWrapper.made == 1


def test_a_signal_handler_queries_while_the_pool_is_built(database: Database) -> None:
    wrapper = database()
    asked: list[Any] = []

    class Interrupting(dict[str, Any]):
        """Settings that are read in the middle of building."""

        def get(self, name: str, default: Any = None) -> Any:
            if name == "CONN_MAX_AGE" and not asked:
                asked.append(0)
                asked.append(ask(wrapper.copy()))
            return super().get(name, default)

    wrapper.settings_dict = Interrupting(wrapper.settings_dict)
    assert ask(wrapper)
    assert asked[1]


def test_a_request_that_fails_under_atomic_requests_leaves_nothing_behind(
    database: Database,
) -> None:
    wrapper = database(ATOMIC_REQUESTS=True)
    with wrapper.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS sale; CREATE TABLE sale (id int)")

    def view(_: HttpRequest) -> HttpResponse:
        with wrapper.cursor() as cursor:
            cursor.execute("INSERT INTO sale VALUES (1)")
        raise LookupError

    with pytest.raises(LookupError):
        BaseHandler().make_view_atomic(view)(HttpRequest())
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM sale")
        assert cursor.fetchone() == (0,)
    wrapper.close()
    assert wrapper.pool.get_stats()["pool_available"] == 1


def test_a_wrapper_that_is_dropped_gives_its_connection_back(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    copy = wrapper.copy()
    ask(copy)
    with uncollected():
        del copy
        assert ask(wrapper)


def test_wrong_settings_fail_at_once(database: Database) -> None:
    wrapper = database(NAME="")
    with pytest.raises(ImproperlyConfigured, match="NAME"):
        ask(wrapper)
    connections.databases[ALIAS]["NAME"] = wrapper.settings_dict["NAME"] = "postgres"


@pytest.mark.parametrize("name", ["conninfo", "leak_seconds", "hooks", "min_sise"])
def test_a_parameter_that_the_project_cannot_give_is_refused(database: Database, name: str) -> None:
    wrapper = database()
    options = wrapper.settings_dict["OPTIONS"]["pool"]
    options[name] = None
    with pytest.raises(ImproperlyConfigured, match=rf"cannot have '{name}'; it may have"):
        ask(wrapper)
    del options[name]


@pytest.mark.parametrize("given", [{"release": "transactions"}, {"leak_seconds": "60"}])
def test_an_impossible_value_of_our_key_is_refused_in_a_sentence(
    database: Database, given: dict[str, Any]
) -> None:
    [(name, value)] = given.items()
    with pytest.raises(ImproperlyConfigured, match=rf"\['{name}'\] is '{value}', which is not"):
        ask(database(ABS_ORM_APP=given))


def test_djangos_parallel_test_runner_works_on_the_pool(server: Server) -> None:
    pool = {"DATABASE_URL": server.url, "DB_POOL_MODE": "pool", "DB_POOL_SIZE": "2"}
    command = ("manage.py", "test", "tests.backends.django_suite", "--parallel", "2")
    done = python(*command, **pool)
    assert done.returncode == 0, done.stderr
    assert "Ran 4 tests" in done.stderr


# `OPTIONS["pool"]` as a project writes it for Django's own engine


def test_a_name_is_that_of_the_pool_or_refused_in_a_sentence(database: Database) -> None:
    """Django's own engine takes it."""
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 2, "name": "mine"}})
    refusal = ""
    try:
        ask(wrapper)
    except ImproperlyConfigured as refused:
        refusal = str(refused)
    assert "name" in refusal if refusal else wrapper.pool.name == "mine"


@pytest.mark.parametrize("options", ["yes", 20, [4]])
def test_a_pool_that_is_no_dict_is_refused_in_a_sentence(database: Database, options: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"\['pool'\] must be a dict or True"):
        ask(database(OPTIONS={"pool": options}))
