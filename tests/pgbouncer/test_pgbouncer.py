"""Django's ORM through a real PgBouncer, in session and in transaction pooling."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import Group
from django.core.management import call_command
from django.db import Error, OperationalError, connections, transaction
from django.db.models import Count
from pytest_django.plugin import DjangoDbBlocker

from abs_orm_app.environment import database_from_env
from abs_orm_app.facts.failure import failure_of
from tests.support.pgbouncers import PgBouncer, needs_pgbouncer
from tests.support.processes import Watch
from tests.support.projects import OURS, STOCK, database
from tests.support.servers import Server, wait_until

pytestmark = [needs_pgbouncer, pytest.mark.usefixtures("unblocked")]

POOLING = ("session", "transaction")


@pytest.fixture(scope="module")
def _tables(module_server: Server, django_db_blocker: DjangoDbBlocker) -> None:
    """Make the tables through PgBouncer, in transaction pooling."""
    with (
        django_db_blocker.unblock(),
        PgBouncer(module_server, pool_mode="transaction") as pooler,
        through(pooler) as alias,
    ):
        call_command("migrate", database=alias, verbosity=0)


@pytest.fixture
def migrated(_tables: None, shared: Server) -> Server:
    """The module's server with the tables of the sample project, and no groups."""
    with shared.admin() as admin:
        admin.execute("DELETE FROM auth_group")
    return shared


@contextmanager
def through(pooler: PgBouncer, alias: str = "other", **changes: Any) -> Iterator[str]:
    """An alias of DATABASES with DB_POOL_MODE=pgbouncer."""
    environ = {"DATABASE_URL": pooler.url, "DB_POOL_MODE": "pgbouncer"}
    with database({**database_from_env(environ=environ), **changes}, alias) as name:
        yield name


def in_threads(count: int, work: Callable[[int], Any], alias: str = "other") -> list[Any]:
    """Run `work(0)`, `work(1)` ... in threads that close their connection, like requests."""

    def run(number: int) -> Any:
        try:
            return work(number)
        finally:
            connections[alias].close()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count), timeout=60))


def value(query: str, alias: str = "other") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


# Features that work


def test_migrations_run(migrated: Server) -> None:
    with migrated.admin() as admin:
        row = admin.execute("SELECT count(*) FROM django_migrations").fetchone()
    assert row
    assert row[0] > 15


@pytest.mark.parametrize("mode", POOLING)
@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_the_orm_works(migrated: Server, mode: str, engine: str) -> None:
    with PgBouncer(migrated, pool_mode=mode) as pooler, through(pooler, ENGINE=engine) as alias:
        groups = Group.objects.using(alias)
        groups.bulk_create(Group(name=f"group {n}") for n in range(500))
        with transaction.atomic(alias):
            groups.all().delete()
            transaction.set_rollback(True, alias)
        with transaction.atomic(alias):
            groups.filter(name="group 0").update(name="first")
            with pytest.raises(Error), transaction.atomic(alias):  # a savepoint
                groups.create(name="first")
            locked = groups.select_for_update().get(name="first")
            locked.delete()
        assert groups.aggregate(n=Count("id")) == {"n": 499}
        names = {group.name for group in groups.order_by("id").iterator(chunk_size=20)}
        assert len(names) == 499


@pytest.mark.parametrize("mode", POOLING)
def test_100_threads_share_10_server_connections(migrated: Server, mode: str) -> None:
    def work(number: int) -> int:
        for turn in range(3):
            with transaction.atomic("other"):
                Group.objects.using("other").create(name=f"{number} {turn}")
                value("SELECT pg_sleep(0.005)")
            connections["other"].close()  # the end of a request
        return int(value("SELECT pg_backend_pid()"))

    pgbouncer = PgBouncer(migrated, pool_mode=mode, default_pool_size=10, max_client_conn=150)
    with pgbouncer as pooler, through(pooler), Watch(migrated) as watch:
        pids = in_threads(100, work)
        done = Group.objects.using("other").count()
    assert done == 300
    assert watch.most <= 10
    assert 1 < len(set(pids)) <= 10


def test_each_client_keeps_its_own_time_zone(migrated: Server) -> None:
    with (
        PgBouncer(migrated, pool_mode="transaction", default_pool_size=1) as pooler,
        through(pooler, "berlin", TIME_ZONE="Europe/Berlin") as berlin,
        through(pooler, "tokyo", TIME_ZONE="Asia/Tokyo") as tokyo,
    ):
        ask = "SELECT current_setting('TimeZone') || ' ' || pg_backend_pid()"
        seen = [value(ask, alias).split() for alias in (berlin, tokyo, berlin, tokyo)]
    assert [zone for zone, _ in seen] == ["Europe/Berlin", "Asia/Tokyo"] * 2
    assert len({pid for _, pid in seen}) == 1


# Features that need a session


def iterate(alias: str) -> int:
    """Read all groups in small chunks while another client wants a server connection."""
    rows = Group.objects.using(alias).order_by("id").iterator(chunk_size=20)
    read = 1
    next(rows)
    with database({**connections.settings[alias]}, "another") as other, transaction.atomic(other):
        value("SELECT 1", other)
        for _ in rows:
            read += 1
    return read


@pytest.mark.parametrize("mode", POOLING)
def test_server_side_cursors_outside_a_transaction_need_session_pooling(
    migrated: Server, mode: str
) -> None:
    pgbouncer = PgBouncer(migrated, pool_mode=mode)
    with pgbouncer as pooler, through(pooler, DISABLE_SERVER_SIDE_CURSORS=False) as alias:
        Group.objects.using(alias).bulk_create(Group(name=f"{n}") for n in range(100))
        with transaction.atomic(alias):
            assert iterate(alias) == 100
        if mode == "session":
            assert iterate(alias) == 100
        else:
            with pytest.raises((Error, psycopg.Error), match=r"cursor .* does not exist"):
                iterate(alias)


def test_pgbouncer_mode_avoids_server_side_cursors(migrated: Server) -> None:
    with PgBouncer(migrated, pool_mode="transaction") as pooler, through(pooler) as alias:
        Group.objects.using(alias).bulk_create(Group(name=f"{n}") for n in range(100))
        assert iterate(alias) == 100


def test_prepared_statements_fail_in_transaction_pooling(migrated: Server) -> None:
    def work(number: int) -> None:
        for _ in range(20):
            Group.objects.using("other").filter(id=number).exists()

    options = {"prepare_threshold": 0}  # no effect where the client binds the parameters
    pgbouncer = PgBouncer(migrated, pool_mode="transaction", default_pool_size=2)
    with pgbouncer as pooler, through(pooler, OPTIONS=options):
        in_threads(4, work)
    with (
        pgbouncer as pooler,
        through(pooler, OPTIONS={**options, "server_side_binding": True}),
        pytest.raises(Error, match=r"prepared statement .* exist"),
    ):
        in_threads(4, work)


# Faults


def test_a_stale_server_connection_costs_no_error(migrated: Server) -> None:
    with PgBouncer(migrated, pool_mode="transaction") as pooler, through(pooler):
        first = value("SELECT pg_backend_pid()")
        assert migrated.terminate() == 1
        assert value("SELECT pg_backend_pid()") != first


def test_a_restart_of_pgbouncer_fails_only_the_requests_in_flight(migrated: Server) -> None:
    end, outcomes = threading.Event(), Counter[str]()
    served: list[float] = []

    def work(number: int) -> None:
        while not end.is_set():
            try:
                value("SELECT pg_sleep(0.01)")
                served.append(time.monotonic())
                outcomes["served"] += 1
            except OperationalError as error:
                outcomes[str(error)[:60]] += 1
                time.sleep(0.02)
            connections["other"].close()

    pgbouncer = PgBouncer(migrated, pool_mode="transaction", default_pool_size=4)
    with pgbouncer as pooler, through(pooler), ThreadPoolExecutor(1) as pool:
        load = pool.submit(in_threads, 8, work)
        try:
            wait_until(lambda: outcomes["served"] > 50, "some work")
            pooler.restart()
            back = time.monotonic()
            wait_until(lambda: served[-1] > back, "work after the restart")
            errors = outcomes.total() - outcomes["served"]
            wait_until(lambda: outcomes["served"] > 200, "some more work")
        finally:
            end.set()
        load.result(30)
    # No more errors once it is back.
    assert outcomes.total() - outcomes["served"] <= errors + 8


def test_a_planned_restart_of_the_server_costs_no_error(server: Server) -> None:
    end = threading.Event()
    served = [0] * 6

    def work(number: int) -> None:
        while not end.is_set():
            served[number] += int(value("SELECT 1 FROM pg_sleep(0.005)"))
            connections["other"].close()

    with (
        PgBouncer(server, pool_mode="transaction", default_pool_size=3) as pooler,
        through(pooler),
        ThreadPoolExecutor(1) as pool,
    ):
        load = pool.submit(in_threads, len(served), work)
        try:
            wait_until(lambda: min(served) > 0, "some work of each")
            pooler.command("PAUSE")
            try:
                server.restart()
                before = list(served)
            finally:
                pooler.command("RESUME")
            wait_until(
                lambda: all(now > then for now, then in zip(served, before, strict=True)),
                "more work of each",
            )
        finally:
            end.set()
        load.result(30)


def test_a_client_that_waits_too_long_gets_an_error(migrated: Server) -> None:
    pgbouncer = PgBouncer(
        migrated, pool_mode="transaction", default_pool_size=1, query_wait_timeout=2
    )
    with pgbouncer as pooler, through(pooler) as alias, through(pooler, "another") as other:
        with transaction.atomic(alias):
            value("SELECT 1")
            began = time.monotonic()
            with pytest.raises(OperationalError, match="query_wait_timeout") as caught:
                value("SELECT 1", other)
            assert 1 < time.monotonic() - began < 20
        connections[other].close_if_unusable_or_obsolete()  # as after each request
        assert value("SELECT 42", other) == 42
    assert "default_pool_size" in failure_of(caught.value).hint


def test_clients_are_served_as_soon_as_the_server_is_back(server: Server) -> None:
    def serves() -> bool:
        try:
            return bool(value("SELECT 1") == 1)
        except OperationalError:
            return False
        finally:
            connections["other"].close()

    pgbouncer = PgBouncer(server, server_login_retry="0.2", query_wait_timeout="0.5")
    with pgbouncer as pooler, through(pooler):
        wait_until(serves, "an answer before the server stops")
        server.stop()
        assert not serves()
        assert not serves()
        server.start()
        back = time.monotonic()
        wait_until(serves, "the first answer")
        assert time.monotonic() - back < 10  # with PgBouncer's own default, up to 15


# With a pool in this process


@contextmanager
def pooled(pooler: PgBouncer, size: int) -> Iterator[Any]:
    environ = {"DATABASE_URL": pooler.url, "DB_POOL_MODE": "pool", "DB_POOL_SIZE": str(size)}
    with database(database_from_env(environ=environ)) as alias:
        yield connections[alias]


def request() -> int:
    """The backend pid of the connection that a request gets."""
    pid = int(value("SELECT pg_backend_pid()"))
    connections["other"].close()
    return pid


@pytest.mark.parametrize("mode", POOLING)
def test_the_pool_pings_through_pgbouncer(migrated: Server, mode: str) -> None:
    with PgBouncer(migrated, pool_mode=mode) as pooler, pooled(pooler, size=1) as wrapper:
        first = request()
        time.sleep(0.7)  # after that long, the pool pings
        assert request() == first
        stats = wrapper.pool.get_stats()
        assert (stats["connections_num"], stats.get("connections_lost", 0)) == (1, 0)


def test_the_pool_replaces_connections_that_a_restart_of_pgbouncer_closed(migrated: Server) -> None:
    with PgBouncer(migrated, pool_mode="session") as pooler, pooled(pooler, size=4):
        request()
        pooler.restart()
        began = time.monotonic()
        request()
        assert time.monotonic() - began < 5  # a pool that backs off takes 1 + 2 + 4 s
