"""What a report says of why a connection is held: in both modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from django.core import signals
from django.db import OperationalError, connections, transaction
from psycopg.pq import TransactionStatus

from abs_orm_app.backends import pinned, release
from abs_orm_app.facts.snapshot import snapshot
from abs_orm_app.pool.holders import Holder
from tests.support.databases import ALIAS, Database, ask
from tests.support.pools import Call, staying
from tests.support.servers import wait_until

ONE = {"pool": {"min_size": 1, "max_size": 1, "timeout": 0.5}}
TRACED = {"leak_seconds": 60.0}
pytestmark = pytest.mark.server(roles=["tenant"])


def only_holder(wrapper: Any) -> Holder:
    (holder,) = wrapper.pool.holders()
    assert isinstance(holder, Holder)
    return holder


def use_tenant(wrapper: Any) -> None:
    ask(wrapper, "SET search_path = pg_catalog")


def take_handle(wrapper: Any) -> None:
    assert wrapper.connection


def ask_for_connection(wrapper: Any) -> None:
    wrapper.ensure_connection()


@pytest.mark.parametrize(
    ("change", "reason", "what"),
    [
        (use_tenant, "setting", "SET search_path"),
        (lambda wrapper: ask(wrapper, "SELECT pg_advisory_lock(7)"), "advisory lock", "pg_adv"),
        (lambda wrapper: ask(wrapper, "CREATE TEMP TABLE t (n int)"), "temporary table", "CREATE"),
        (ask_for_connection, "handle", "ensure_connection()"),
    ],
)
def test_a_pin_says_what_and_with_tracing_where(
    database: Database, change: Callable[[Any], None], reason: str, what: str
) -> None:
    wrapper = database(ABS_ORM_APP=TRACED)
    ask(wrapper)
    change(wrapper)
    ask(wrapper)
    pin = only_holder(wrapper).pin
    assert pin is not None
    assert pin.reason == reason
    assert pin.what.startswith(what)
    assert pin.where is not None
    assert "test_pins.py:" in pin.where or "databases.py:" in pin.where  # `ask`
    release(ALIAS)
    assert wrapper.pool.holders() == []


def test_the_place_is_that_of_the_statement_not_that_of_the_checkout(database: Database) -> None:
    wrapper = database(ABS_ORM_APP=TRACED)
    with transaction.atomic(ALIAS):
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
        _set_in_a_function_of_its_own(wrapper)
        holder = only_holder(wrapper)
    assert holder.pin is not None
    assert str(holder.pin).startswith("SET app.tenant at /")
    assert str(holder.pin).endswith("in _set_in_a_function_of_its_own")
    assert str(holder.where).endswith(
        "in test_the_place_is_that_of_the_statement_not_that_of_the_checkout"
    )


def _set_in_a_function_of_its_own(wrapper: Any) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute("SET app.tenant = 'a secret'")


def test_without_tracing_a_pin_says_what_and_no_place(database: Database) -> None:
    wrapper = database()
    ask(wrapper, "SET ROLE tenant")
    pin = only_holder(wrapper).pin
    assert pin is not None
    assert (str(pin), pin.where) == ("SET ROLE", None)


def test_a_pinned_block_is_named_with_its_place(database: Database) -> None:
    wrapper = database(ABS_ORM_APP=TRACED)
    with pinned(ALIAS):
        ask(wrapper)
        pin = only_holder(wrapper).pin
    assert pin is not None
    assert str(pin).startswith("pinned() at /")
    assert str(pin).endswith("in test_a_pinned_block_is_named_with_its_place")


@contextmanager
def _autocommit_off(wrapper: Any) -> Iterator[None]:
    wrapper.set_autocommit(False)
    yield
    wrapper.rollback()
    wrapper.set_autocommit(True)


@contextmanager
def _sql_transaction(wrapper: Any) -> Iterator[None]:
    ask(wrapper, "BEGIN")
    yield
    ask(wrapper, "ROLLBACK")


@contextmanager
def _iteration(wrapper: Any) -> Iterator[None]:
    with wrapper.chunked_cursor() as cursor:
        cursor.execute("SELECT n FROM generate_series(1, 5000) AS n")
        cursor.fetchone()
        yield


@contextmanager
def _cursor(wrapper: Any) -> Iterator[None]:
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        yield


@pytest.mark.parametrize(
    ("held", "reason", "what"),
    [
        (lambda _: transaction.atomic(ALIAS), "transaction", "a transaction"),
        (_autocommit_off, "transaction", "a transaction"),
        (_sql_transaction, "transaction", "a transaction"),
        (_iteration, "cursor", "an open server-side cursor"),
        (_cursor, "cursor", "an open cursor"),
    ],
)
def test_what_ends_by_itself_is_named_while_it_lasts(
    database: Database, release: str, held: Callable[[Any], Any], reason: str, what: str
) -> None:
    wrapper = database()
    with held(wrapper):
        if reason == "transaction":
            ask(wrapper)
        pin = only_holder(wrapper).pin
        assert pin is not None
        assert (pin.reason, pin.what) == (reason, what)
        assert snapshot(wrapper.pool).pinned == {reason: 1}
    now = snapshot(wrapper.pool)
    # Afterwards nothing needs the session: in `request` mode the connection is kept all the same.
    assert (now.pinned, now.unused) == ({}, {"request": 1, "transaction": 0}[release])


def test_a_statement_that_runs_is_no_pin(database: Database) -> None:
    wrapper = database()
    running = Call(lambda: ask(connections[ALIAS], "SELECT pg_sleep(60)"))
    wait_until(lambda: _statuses(wrapper) == [TransactionStatus.ACTIVE], "the statement to run")
    now = snapshot(wrapper.pool)
    assert (now.in_use, now.pinned, now.unused) == (1, {}, 0)
    wait_until(lambda: database.server.cancel() == 1, "the statement to be cancelled")
    with pytest.raises(OperationalError):
        running.result(within=20)


def _statuses(wrapper: Any) -> list[TransactionStatus]:
    return [entry.pgconn.transaction_status for entry in tuple(wrapper.pool.in_use)]


def another_request(work: Callable[[Any], Any]) -> AbstractContextManager[None]:
    """Do something in a request of another thread, which then waits."""

    def begin() -> None:
        signals.request_started.send(sender=None)
        work(connections[ALIAS])

    return staying(begin)


def with_one(database: Database, **more: Any) -> Any:
    """A pool of one connection, which is open: on a busy machine, that may take longer than ONE."""
    wrapper = database(OPTIONS=ONE, **more)
    wrapper.pool.open(wait=True)
    return wrapper


def test_the_timeout_names_what_pins_the_connection(database: Database) -> None:
    wrapper = with_one(database, ABS_ORM_APP=TRACED)
    with (
        another_request(_set_in_a_function_of_its_own),
        pytest.raises(
            OperationalError, match=r"pinned by SET app\.tenant at /.*test_pins\.py"
        ) as e,
    ):
        ask(wrapper)
    assert "a secret" not in str(e.value)


def test_the_timeout_says_that_most_connections_are_idle(database: Database, release: str) -> None:
    wrapper = with_one(database)
    if release == "transaction":
        with another_request(ask):
            assert ask(wrapper)
        return
    advice = "It is idle, in no transaction, until the request ends: DB_POOL_RELEASE=transaction"
    with another_request(ask), pytest.raises(OperationalError, match=advice):
        ask(wrapper)


def test_the_timeout_gives_no_such_advice_where_a_transaction_holds_it(database: Database) -> None:
    wrapper = with_one(database)
    with (
        another_request(lambda wrapper: ask(wrapper, "BEGIN")),
        pytest.raises(OperationalError, match="pinned by a transaction") as error,
    ):
        ask(wrapper)
    assert "DB_POOL_RELEASE" not in str(error.value)


def test_the_warning_of_a_leak_names_the_pin(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    wrapper = database(ABS_ORM_APP={"leak_seconds": 0.3})
    _set_in_a_function_of_its_own(wrapper)
    wait_until(lambda: "has held a connection for" in caplog.text, "the warning")
    assert "pinned by SET app.tenant at /" in caplog.text
