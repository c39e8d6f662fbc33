"""Nothing that arrives between two steps of a lease costs another request anything.

An exception of a signal handler (Celery's time limit, Ctrl-C), a handler that queries, or a
garbage collection that ends cursors: at each bytecode of `backends/`, and by real signals.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import count, cycle
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from celery import Celery  # type: ignore[import-untyped]
from celery.fixups.django import DjangoWorkerFixup  # type: ignore[import-untyped]
from django.core.signals import request_finished, request_started
from django.db import Error, close_old_connections, connections, transaction

from abs_orm_app.backends.lease import ALWAYS, Lease, Step
from tests.support.bytecodes import (
    BACKENDS,
    POOL,
    Interrupted,
    acting,
    signals_leave_locks,
    sweep,
    throw,
)
from tests.support.databases import ALIAS, ONE, Database, ask, held
from tests.support.pools import Call, opened, ours
from tests.support.servers import Server, wait_until

pytestmark = [
    pytest.mark.server(sql=["CREATE TABLE rows (n int)", "CREATE TABLE notes (n int)"]),
    # An exception that arrives in a finalizer is printed, and ends there.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PATIENCE = 60.0  # seconds; a thread that spins does so for ever
TWO = {"pool": {"min_size": 2, "max_size": 2, "timeout": 10}}
SERIES = "SELECT n FROM generate_series(1, 5000) AS n"


def query(wrapper: Any) -> None:
    assert ask(wrapper, "SELECT 7") == 7


def iterate(wrapper: Any) -> None:
    def rows() -> Generator[Any]:
        with wrapper.chunked_cursor() as cursor:
            cursor.execute(SERIES)
            yield from cursor

    iteration = rows()
    assert next(iteration) == (1,)
    iteration.close()


def insert_many(wrapper: Any) -> None:
    with wrapper.cursor() as cursor:
        cursor.executemany("INSERT INTO rows VALUES (%s)", [[1], [2]])


def insert_in_a_transaction(wrapper: Any) -> None:
    with transaction.atomic(ALIAS):
        ask(wrapper, "INSERT INTO rows VALUES (1)")


def insert_in_savepoints(wrapper: Any) -> None:
    with transaction.atomic(ALIAS):
        with suppress(LookupError), transaction.atomic(ALIAS):
            ask(wrapper, "INSERT INTO rows VALUES (1)")
            raise LookupError
        with transaction.atomic(ALIAS):
            ask(wrapper, "INSERT INTO rows VALUES (2)")


def keep_a_change(wrapper: Any) -> None:
    ask(wrapper, "SET app.tenant = '7'")
    query(wrapper)


def write_down(wrapper: Any, other: psycopg.Connection[Any], note: int) -> None:
    """It is there at once. After an exception in the first or last step of a block, it is in it."""
    ask(wrapper, "INSERT INTO notes VALUES (%s)", note)
    if not wrapper.atomic_blocks:
        found = other.execute("DELETE FROM notes WHERE n = %s RETURNING n", [note])
        assert found.fetchall() == [(note,)]


WORK = [query, iterate, insert_many, insert_in_a_transaction, keep_a_change]


def end_request(wrapper: Any) -> None:
    request_finished.send(type(wrapper))


def query_meanwhile() -> None:
    """Not within psycopg's own lock: a query would wait for its thread there, in every pool."""
    wrapper: Any = connections[ALIAS]
    lease = wrapper._lease
    connection = lease.connection if lease is not None else None
    if connection is None or not connection.lock.locked():
        query(wrapper)


def collect() -> None:
    """Open cursors that nobody refers to, and collect them."""
    cursor: Any = connections[ALIAS].cursor()
    cursor.cycle = [cursor]
    del cursor
    gc.collect(0)


def collect_a_connection() -> None:
    """That `lose` has left."""
    gc.collect(0)


def lose(wrapper: Any) -> None:
    """Leave a connection that only the garbage collector finds."""
    lost = [wrapper.pool.getconn()]
    lost.append(lost)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("act", [throw, query_meanwhile, collect])
@pytest.mark.parametrize("work", WORK)
def test_whatever_happens_at_a_bytecode_the_next_requests_are_served(
    database: Database, work: Callable[[Any], None], act: Callable[[], None]
) -> None:
    check_next_requests(database, work, act, BACKENDS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("act", [throw, query_meanwhile, collect_a_connection])
@pytest.mark.parametrize("work", [iterate, insert_many, keep_a_change])
def test_whatever_happens_at_a_bytecode_of_the_pool_the_next_requests_are_served(
    database: Database, work: Callable[[Any], None], act: Callable[[], None]
) -> None:
    check_next_requests(database, work, act, POOL)


@pytest.mark.timeout(600)
def test_an_exception_within_atomic_ends_the_block_with_the_request(database: Database) -> None:
    check_next_requests(database, insert_in_savepoints, throw, str(transaction.__file__))


@pytest.mark.parametrize("interrupted", [request_finished, request_started, "celery"])
def test_a_block_that_nobody_ends_costs_the_next_request_nothing(
    database: Database, interrupted: Any
) -> None:
    wrapper = database(OPTIONS=TWO)
    transaction.atomic(ALIAS).__enter__()
    ask(wrapper, "INSERT INTO notes VALUES (1)")
    if interrupted == "celery":
        DjangoWorkerFixup(Celery(set_as_current=False)).close_database()
    else:
        interrupted.send(type(wrapper))
    assert held(wrapper) == 0
    with transaction.atomic(ALIAS):
        assert ask(wrapper, "SELECT count(*) FROM notes WHERE n = 1") == 0


def test_who_closes_connections_in_a_block_gets_djangos_error(database: Database) -> None:
    wrapper = database(OPTIONS=TWO)
    with transaction.atomic(ALIAS):
        query(wrapper)
        close_old_connections()
        with pytest.raises(Error, match="atomic block"):
            query(wrapper)
    query(wrapper)


def check_next_requests(
    database: Database, work: Callable[[Any], None], act: Callable[[], None], within: str
) -> None:
    wrapper = database(OPTIONS=TWO)

    def all_bytecodes() -> int:
        mine: Any = connections[ALIAS]

        def do() -> None:
            if act is collect_a_connection:
                lose(mine)
            work(mine)
            if within == POOL:
                end_request(mine)

        def check(at: int) -> None:
            gc.collect(0)
            with suppress(Error):
                write_down(mine, other, at)  # what the same task writes next
            # Two, if a handler has queried while one was being leased.
            assert held(mine) <= (1 if act is throw else 2), at
            end_request(mine)
            assert not mine.in_atomic_block, at
            write_down(mine, other, at)
            end_request(mine)
            # What was collected is given back by another thread.
            wait_until(lambda: held(mine) == 0, f"nothing to be held ({at})")
            if within == POOL:  # which may have to open one
                conns = [mine.pool.getconn() for _ in range(mine.pool.max_size)]
                for conn in conns:
                    mine.pool.return_unchanged(conn)

        work(mine)
        end_request(mine)
        # A query while `atomic` begins or ends is an error in the stock engine as well.
        return sweep(do, act, within, check, Error)

    with psycopg.connect(database.server.conninfo, autocommit=True) as other:
        last = Call(all_bytecodes).result(within=600)
    assert last > 100
    query(wrapper)


@pytest.mark.timeout(600)
def test_whatever_happens_at_a_bytecode_of_a_return(database: Database) -> None:
    """Of a session that the request keeps, in either mode."""
    wrapper = database(OPTIONS=TWO)

    def keep_a_change_and_return() -> None:
        keep_a_change(wrapper)
        end_request(wrapper)

    def check(at: int) -> None:
        assert ask(wrapper, "SELECT current_setting('app.tenant', true)") in ("", None, "7")
        end_request(wrapper)
        wait_until(lambda: held(wrapper) == 0, f"nothing to be held ({at})")

    for act in (throw, query_meanwhile, collect):
        assert sweep(keep_a_change_and_return, act, BACKENDS, check) > 20


# Real signals, which arrive in the main thread


@contextmanager
def signals(handler: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Yields what arms one signal, which comes within two milliseconds."""
    armed, ends = threading.Event(), threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def send() -> None:
        delays = cycle(number * 1e-6 for number in range(0, 1500, 17))
        while not ends.is_set():
            if armed.wait(0.05):
                sleep(next(delays))
                armed.clear()
                signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: handler())
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # or the sender runs only while the main thread waits
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield armed.set
    finally:
        sys.setswitchinterval(interval)
        ends.set()
        sender.join(PATIENCE)
        signal.signal(signal.SIGUSR1, before)


@signals_leave_locks
@pytest.mark.timeout(300)
@pytest.mark.parametrize("queries", [False, True])
def test_signals_leave_every_connection_to_the_next_request(
    database: Database, queries: bool
) -> None:
    wrapper: Any = database(OPTIONS={"pool": {"min_size": 3, "max_size": 3, "timeout": 10}})
    query(wrapper)
    arrived = 0

    def handle() -> None:
        nonlocal arrived
        arrived += 1
        if not queries:
            raise Interrupted
        # A query within psycopg's own lock would wait for itself, in the stock pool as well.
        lease = wrapper._held()
        connection = lease and lease.connection
        if connection is None or not connection.lock.locked():
            with suppress(Error):
                query(wrapper)

    end = monotonic() + 5
    with signals(handle) as arm:
        while monotonic() < end:
            before = arrived
            try:
                arm()
                while arrived == before:
                    for _ in range(20):  # without a word to the server
                        wrapper.cursor().close()
                    query(wrapper)
                    insert_in_a_transaction(wrapper)
                    iterate(wrapper)
            except (Interrupted, Error):
                pass
            with suppress(Error):
                query(wrapper)  # what the task writes down of its failure
            end_request(wrapper)
            query(wrapper)
            end_request(wrapper)
    assert arrived > 30
    gc.collect()
    wait_until(lambda: held(wrapper) == 0, "nothing to be held")
    assert len(wrapper.pool.entries) <= 3


# Threads


@pytest.mark.parametrize("end", [transaction.rollback, transaction.commit])
def test_the_end_of_no_transaction_ends_not_the_one_of_the_next_holder(
    database: Database, end: Callable[[str], None]
) -> None:
    """Outside of a request, a thread that waits gets the connection as soon as nobody uses it."""
    wrapper = database(OPTIONS=ONE)
    inserted, ended = threading.Event(), threading.Event()
    others: list[Call] = []

    def insert() -> None:
        with suppress(LookupError), transaction.atomic(ALIAS):
            ask(connections[ALIAS], "INSERT INTO rows VALUES (8)")
            inserted.set()
            assert ended.wait(20)
            if end is transaction.commit:
                raise LookupError

    def let_another_insert() -> None:
        others.append(Call(insert))
        inserted.wait(1.0)  # in vain, if it has to wait

    query(wrapper)
    try:
        with acting(0, let_another_insert, str(Path(psycopg.__file__).parent / "connection.py")):
            end(ALIAS)
    finally:
        ended.set()
    for other in others:
        other.result(within=PATIENCE)
    assert bool(others) is (database.release == "request")
    with wrapper.cursor() as cursor:
        cursor.execute("DELETE FROM rows WHERE n = 8")
        assert cursor.rowcount == (len(others) if end is transaction.rollback else 0)


def test_a_statement_of_a_connection_that_was_just_closed_is_not_executed_by_its_next_holder(
    database: Database,
) -> None:
    """Closed by a signal handler, or by another thread that shares the wrapper."""
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 20}})
    cursor_module = str(Path(psycopg.__file__).parent / "cursor.py")
    own = "SELECT count(*) FROM rows WHERE n = 9 AND xmin::text = pg_current_xact_id()::text"

    def meanwhile(inserted: threading.Event, ended: threading.Event) -> int:
        with transaction.atomic(ALIAS):
            ask(connections[ALIAS], "INSERT INTO rows VALUES (8)")
            inserted.set()
            assert ended.wait(20)
            found: int = ask(connections[ALIAS], own)
            transaction.set_rollback(True, ALIAS)
        return found

    for at in count():
        inserted, ended = threading.Event(), threading.Event()
        others: list[Call] = []

        def close(
            inserted: threading.Event = inserted,
            ended: threading.Event = ended,
            others: list[Call] = others,
        ) -> None:
            if wrapper._lease and not wrapper._lease.connection.lock.locked():
                wrapper.close()
                others.append(Call(meanwhile, inserted, ended))
                inserted.wait(20)

        cursor = wrapper.cursor()
        try:
            with suppress(Error), acting(at, close, cursor_module):
                cursor.execute("INSERT INTO rows VALUES (9)")
        finally:
            ended.set()
        if not others:
            break
        assert others[0].result(within=PATIENCE) == 0, at
        wrapper.close()
    assert at > 3


def test_a_lease_is_returned_once_and_never_while_it_is_used(shared: Server) -> None:
    """Users come and go, others end it: threads that change places at each bytecode."""
    with opened(ours, shared.conninfo, min_size=1, timeout=20) as pool:
        returned: list[bool] = []
        faults: list[str] = []
        joined, ends = [0, 0, 0], threading.Event()
        current = [Lease(pool.getconn(), (), set())]

        def use(number: int) -> None:
            while not ends.is_set():
                lease, step = current[0], Step()
                if step.join(lease):
                    joined[number] += 1
                    if lease.checkout or lease.connection is None:
                        faults.append("returned while it was used")
                    step.leave()

        def end_it() -> None:
            while not ends.is_set():
                lease = current[0]
                if lease.end_if_idle():
                    returned.append(True)
                    current[0] = Lease(pool.getconn(), ALWAYS if len(returned) % 2 else (), set())
                elif lease.has_ended():  # by its last user
                    current[0] = Lease(pool.getconn(), (), set())

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            threads = [*(Call(use, number) for number in range(3)), Call(end_it)]
            sleep(4)
        finally:
            ends.set()
            sys.setswitchinterval(interval)
        for thread in threads:
            thread.result(within=PATIENCE)
        assert faults == []
        assert sum(joined) > 10_000
        assert len(returned) > 10
        current[0].end()
        wait_until(lambda: not pool.in_use, "its return")
        stats = pool.get_stats()
        assert stats["pool_size"] == 1
