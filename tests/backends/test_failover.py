"""Django's engine through a switchover: what fails, and what the pool learns from errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from time import sleep
from typing import Any

import pytest
from django.db import DatabaseError, InternalError, OperationalError, connections, transaction

from abs_orm_app.pool import roles
from abs_orm_app.pool.pool import HardenedPool
from tests.support.databases import ALIAS as POOLED
from tests.support.databases import ONE, Database, ask
from tests.support.pools import APP, Call
from tests.support.projects import OURS, compared_with_stock_engine, database, entry
from tests.support.proxy import Proxy
from tests.support.replication import Standby, follow
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.usefixtures("unblocked")

SIZE = 2
ALIAS = "default_of_the_test"
CREATE = "CREATE TABLE written (at timestamptz DEFAULT now())"
WRITE = "INSERT INTO written DEFAULT VALUES"
READ_ONLY = "SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
COUNT = "SELECT count(*) FROM written"


@contextmanager
def alias(
    address: Proxy, server: Server, engine: str = OURS, **more: Any
) -> Iterator[tuple[Any, Any]]:
    """A wrapper with a pool at this address, and the pool."""
    options = {"pool": {"min_size": SIZE, "max_size": SIZE, "timeout": 10}, **more}
    conninfo = f"{server.tcp_conninfo} port={address.port}"
    with database(entry(conninfo, engine, OPTIONS=options), ALIAS):
        wrapper: Any = connections[ALIAS]
        yield wrapper, wrapper.pool


def write(wrapper: Any) -> str:
    """One request that writes; the error's class, or ""."""
    try:
        with closing(wrapper), wrapper.cursor() as cursor:
            cursor.execute(WRITE)
    except DatabaseError as error:
        return type(error).__name__
    return ""


@pytest.fixture(params=[False, True], ids=["reported", "mute"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Standby, Proxy]]:
    """A primary and its standby, and the address of the primary; "mute": as before version 14."""
    with (
        Server() as first,
        Standby(first) as second,
        Proxy(first.port, mute=request.param) as address,
    ):
        with first.admin() as admin:
            admin.execute(CREATE)
        with second.admin() as admin:
            found = "SELECT to_regclass('written') IS NOT NULL"
            wait_until(lambda: admin.execute(found).fetchone() == (True,), "the standby to have it")
        yield first, second, address


@compared_with_stock_engine("it keeps them for an hour")
def test_after_a_switchover_no_request_meets_the_old_primary(
    pair: tuple[Server, Standby, Proxy], engine: str
) -> None:
    first, second, address = pair
    with alias(address, first, engine) as (wrapper, _):
        assert write(wrapper) == ""
        first.stop()
        second.promote()
        follow(first, second)
        wait_until(lambda: write(wrapper) == "InternalError", "the old primary to be a standby")
        address.target = second.port
        sleep(2 * roles.MISPLACED_LIFE)
        assert [write(wrapper) for _ in range(10)] == [""] * 10


def test_a_read_only_transaction_costs_no_connection(pair: tuple[Server, Standby, Proxy]) -> None:
    first, _, address = pair
    with alias(address, first) as (wrapper, pool):
        with closing(wrapper), pytest.raises(InternalError):
            _write_read_only(wrapper)
        assert [write(wrapper) for _ in range(2)] == ["", ""]
        assert "connections_misplaced" not in pool.get_stats()


def test_a_session_that_a_request_made_read_only_is_cleaned_and_kept(database: Database) -> None:
    wrapper = database(OPTIONS=ONE)
    backend = ask(wrapper)
    for setting in ("default_transaction_read_only = on", READ_ONLY):
        with closing(wrapper):
            ask(wrapper, f"SET {setting}")
        sleep(2 * roles.MISPLACED_LIFE)
        with closing(wrapper):
            assert ask(wrapper) == backend
            assert ask(wrapper, "SHOW transaction_read_only") == "off"
    assert "connections_misplaced" not in wrapper.pool.get_stats()


def _write_read_only(wrapper: Any) -> None:
    with transaction.atomic(using=ALIAS), wrapper.cursor() as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
        cursor.execute(WRITE)


def test_a_server_error_in_use_makes_the_other_connections_suspect(server: Server) -> None:
    with Proxy(server.port) as address, alias(address, server) as (wrapper, pool):
        assert isinstance(pool, HardenedPool)
        pool.open(wait=True)
        with closing(wrapper), pytest.raises(OperationalError), wrapper.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert all(entry.suspicion is not None for entry in pool.entries)
        assert not any(entry in pool.in_use for entry in pool.entries)


def test_an_ordinary_error_makes_no_connection_suspect(server: Server) -> None:
    with Proxy(server.port) as address, alias(address, server) as (wrapper, pool):
        pool.open(wait=True)
        with closing(wrapper), pytest.raises(DatabaseError), wrapper.cursor() as cursor:
            cursor.execute("SELECT 1/0")
        assert all(entry.suspicion is None for entry in pool.entries)


def test_a_mirror_is_left_on_its_standby() -> None:
    with Server() as first, Standby(first) as second, Proxy(first.port) as address:
        options = {"pool": {"min_size": 1, "max_size": 1, "timeout": 10}}
        conninfo = f"{first.tcp_conninfo} port={address.port}"
        mirror = entry(conninfo, OURS, OPTIONS=options, TEST={"MIRROR": "default"})
        with database(mirror, ALIAS):
            wrapper: Any = connections[ALIAS]
            assert not _in_recovery(wrapper)
            address.target = second.port
            wrapper.pool.drain()
            assert _in_recovery(wrapper)
            sleep(2 * roles.MISPLACED_LIFE)
            assert _in_recovery(wrapper)
            assert "connections_misplaced" not in wrapper.pool.get_stats()


def _in_recovery(wrapper: Any) -> bool:
    with closing(wrapper), wrapper.cursor() as cursor:
        cursor.execute("SELECT pg_is_in_recovery()")
        return bool(cursor.fetchone()[0])


# Connections that end between two statements of a request


@pytest.fixture
def owned(database: Database, server: Server) -> Database:
    """Aliases on a server of the test's own, with the table `written`."""
    with server.admin() as admin:
        admin.execute(CREATE)
    database.server = server
    return database


def end_sessions(owned: Database, wrapper: Any) -> None:
    """End the sessions of the pool, and wait until it could see that."""
    entries = tuple(getattr(wrapper.pool, "entries", ()))
    owned.server.terminate(APP)
    wait_until(lambda: all(entry.poll(0) for entry in entries), "the server's last word")


@compared_with_stock_engine("the next one fails")
def test_a_session_that_ends_between_two_statements_costs_none(
    owned: Database, engine: str
) -> None:
    wrapper = owned(ENGINE=engine)
    for _ in range(10):
        ask(wrapper, WRITE)
        end_sessions(owned, wrapper)
    assert ask(wrapper, COUNT) == 10


def test_no_statement_is_sent_to_a_server_that_has_ended_the_session(owned: Database) -> None:
    """Its session has ended, but the close is still on its way."""
    with Proxy(owned.server.port) as address:
        wrapper = owned(HOST="127.0.0.1", PORT=str(address.port))
        address.closing_delay = 1.0
        for _ in range(3):
            ask(wrapper, WRITE)
            end_sessions(owned, wrapper)
        assert ask(wrapper, COUNT) == 3


@pytest.mark.server(
    {"synchronous_standby_names": "one_that_never_comes", "synchronous_commit": "local"}
)
def test_a_write_that_has_run_though_its_answer_was_lost_is_not_repeated(owned: Database) -> None:
    """It is committed, and waits for a standby, when its session is ended."""
    wrapper = owned(OPTIONS={"options": "-c synchronous_commit=on"})
    assert ask(wrapper)
    writing = Call(lambda: ask(connections[POOLED], WRITE))
    with owned.server.admin() as admin:
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        wait_until(lambda: admin.execute(waits).fetchone() is not None, "the commit to wait")
        owned.server.terminate(APP)
        with pytest.raises(OperationalError):
            writing.result(within=30)
    assert ask(wrapper, COUNT) == 1
