"""A task gets a connection of the alias's own pool, and gives it back in any case."""

from __future__ import annotations

import asyncio
import gc
import re
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import datetime
from threading import Thread
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.db.transaction import TransactionManagementError
from psycopg.rows import dict_row
from psycopg_pool import PoolTimeout, TooManyRequests

from abs_orm_app import aio
from abs_orm_app.integrations.admin_page.diagnosis import holder_name
from abs_orm_app.integrations.admin_page.live import group_holders
from abs_orm_app.pool.causes import held_by
from tests.aio.conftest import check_whole
from tests.support.databases import ALIAS, ONE, TWO, Database, ask
from tests.support.inherited import KINDS, SETUP, Kind
from tests.support.pools import LATE, Call
from tests.support.processes import Watch
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.server(
    {"max_prepared_transactions": "2"}, roles=["tenant"], sql=[*SETUP, "CREATE TABLE notes (n int)"]
)

Use = Callable[[psycopg.AsyncConnection[Any]], Awaitable[object]]


async def first(
    sql: str = "SELECT pg_backend_pid()", *params: Any, timeout: float | None = None
) -> Any:
    """The first value, on a connection of its own."""
    async with aio.connection(ALIAS, timeout=timeout) as conn:
        row = await (await conn.execute(sql, params or None)).fetchone()
        return row and row[0]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


# The same pool


def test_a_task_and_a_thread_share_the_pool_and_its_limit(wrapper: Any) -> None:
    mine = ask(wrapper)
    wrapper.close()

    async def use() -> None:
        async with aio.connection(ALIAS) as conn:
            assert conn.info.backend_pid == mine
            assert conn.autocommit
            with pytest.raises(PoolTimeout):
                await first(timeout=0.1)
            with pytest.raises(PoolTimeout):
                await sync_to_async(wrapper.pool.getconn)(0.1)
        assert await first() == mine

    run(use())
    assert ask(wrapper) == mine


async def test_what_the_alias_sets_holds_for_a_task_too(database: Database) -> None:
    database(
        OPTIONS={**ONE, "assume_role": "tenant", "isolation_level": 4}, TIME_ZONE="Europe/Paris"
    )
    async with aio.connection(ALIAS) as conn:
        cursor = await conn.execute("SELECT current_user, now(), %s::text", ["a'b"])
        row = await cursor.fetchone()
        assert row is not None
        user, now, text = row
        assert (user, text) == ("tenant", "a'b")
        assert isinstance(now, datetime)
        assert str(now.tzinfo) == "Europe/Paris"
        async with conn.transaction():
            cursor = await conn.execute("SHOW transaction_isolation")
            assert await cursor.fetchone() == ("serializable",)


def test_statements_prepared_by_either_do_not_collide(database: Database) -> None:
    wrapper = database(OPTIONS={**ONE, "server_side_binding": True, "prepare_threshold": 0})

    async def use(n: int) -> None:
        async with aio.connection(ALIAS) as conn:
            for kind in ("int", "text", "float"):
                await conn.execute(f"SELECT %s::{kind}, {n}", ["1"])
            conn.prepare_threshold = None

    for n in range(3):
        run(use(n))
        assert ask(wrapper, f"SELECT %s::int + {n}", 1) == 1 + n
        assert wrapper.connection.prepare_threshold == 0
        wrapper.close()
    assert ask(wrapper, "SELECT count(*) FROM pg_prepared_statements") > 3


@pytest.mark.parametrize("mode", ["null", "persistent"])
def test_without_a_pool_it_is_a_connection_of_its_own(database: Database, mode: str) -> None:
    wrapper = database(
        OPTIONS={"pool": None, "assume_role": "tenant"},
        CONN_MAX_AGE=60 if mode == "persistent" else 0,
    )
    mine = ask(wrapper)

    async def use() -> None:
        async with aio.connection(ALIAS) as conn:
            assert conn.info.backend_pid != mine
            assert await first("SELECT current_user") == "tenant"
        assert conn.closed

    run(use())
    wait_until(lambda: database.server.sessions("pool-under-test") == 1, "the session to end")


def test_without_a_pool_a_task_that_is_cancelled_as_it_connects_closes_its_connection(
    database: Database,
) -> None:
    database(OPTIONS={"pool": None})

    async def use() -> None:
        task = asyncio.create_task(first())
        await asyncio.sleep(0)
        sleep(0.5)  # the thread connects, and the task does not know it yet
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run(use())
        gc.collect()
    assert not [warning for warning in warned if warning.category is ResourceWarning]


def test_another_engine_is_refused(database: Database) -> None:
    database(ENGINE="django.db.backends.postgresql", OPTIONS={"pool": None})
    with pytest.raises(ImproperlyConfigured, match=r"abs_orm_app\.backends\.postgresql"):
        run(first())


# The end


async def _open_transaction(conn: Any) -> None:
    await conn.execute("BEGIN")
    await conn.execute("INSERT INTO notes VALUES (1)")


async def _failed(conn: Any) -> None:
    async with conn.transaction():
        await conn.execute("INSERT INTO notes VALUES (1)")
        await conn.execute("SELECT 1 / 0")


async def _two_phases(conn: Any) -> None:
    await conn.set_autocommit(False)
    await conn.tpc_begin("left")
    await conn.execute("INSERT INTO notes VALUES (1)")


async def _autocommit_off(conn: Any) -> None:
    await conn.set_autocommit(False)
    conn.row_factory = dict_row
    conn.adapters.register_loader("int4", psycopg.types.string.TextLoader)
    await conn.execute("INSERT INTO notes VALUES (1)")


@pytest.mark.parametrize("leave", [_open_transaction, _failed, _two_phases, _autocommit_off])
def test_an_open_transaction_is_rolled_back_and_the_session_kept(wrapper: Any, leave: Use) -> None:

    async def use() -> tuple[int, int]:
        pid = 0
        try:
            async with aio.connection(ALIAS) as conn:
                pid = conn.info.backend_pid
                await leave(conn)
        except psycopg.errors.DivisionByZero:
            pass
        async with aio.connection(ALIAS) as conn:
            cursor = await conn.execute("SELECT count(*)::int4 FROM notes")
            assert await cursor.fetchone() == (0,)
            return pid, conn.info.backend_pid

    before, after = run(use())
    assert before == after
    assert ask(wrapper, "SELECT 1::int4") == 1


def test_the_return_never_waits_for_the_server(database: Database, server: Server) -> None:
    database.server = server
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 2}})

    async def use() -> None:
        door = aio.connection(ALIAS)
        conn = await door.__aenter__()
        await conn.execute("BEGIN")
        server.suspend()
        with pytest.raises(StopIteration):  # without a single await
            door.__aexit__(None, None, None).__await__().__next__()

    try:
        run(use())
    finally:
        server.resume()
    check_whole(wrapper)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.hidden], ids=lambda k: k.name)
def test_nothing_of_the_session_is_left_to_the_next_holder(wrapper: Any, kind: Kind) -> None:

    async def change() -> None:
        async with aio.connection(ALIAS) as conn:
            if isinstance(kind.change, str):
                await conn.execute(kind.change)
            else:
                await _autocommit_off(conn)

    run(change())
    assert kind.look(ALIAS) is None
    wrapper.close()
    assert run(first("SELECT count(*) FROM notes")) == 0


async def _another_class(conn: Any) -> None:
    await psycopg.AsyncCursor(conn).execute("SET search_path = 'mine'")


async def _another_factory(conn: Any) -> None:
    conn.cursor_factory = psycopg.AsyncRawCursor
    await conn.execute("SET search_path = 'mine'")


async def _another_server_cursor(conn: Any) -> None:
    async with conn.transaction():
        await psycopg.AsyncServerCursor(conn, "left", withhold=True).execute("SELECT 1")


@pytest.mark.usefixtures("wrapper")
@pytest.mark.parametrize("use", [_another_class, _another_factory, _another_server_cursor])
async def test_a_cursor_of_any_class_leaves_nothing_to_the_next_holder(use: Use) -> None:
    async with aio.connection(ALIAS) as conn:
        await use(conn)
    sql = "SELECT count(*) FROM pg_cursors WHERE name = 'left'"
    assert await first(f"SELECT ({sql}) + (current_setting('search_path') = 'mine')::int") == 0


async def _many(conn: Any) -> None:
    await conn.cursor().executemany("SELECT pg_sleep(%s)", [[0.1]] * 20)


async def _pipeline(conn: Any) -> None:
    async with conn.pipeline():
        for _ in range(20):
            await conn.execute("SELECT pg_sleep(0.1)")


async def _copy(conn: Any) -> None:
    async with conn.cursor().copy("COPY notes FROM STDIN") as copy:
        while True:
            await copy.write_row([1])
            await asyncio.sleep(0.01)


async def _stream(conn: Any) -> None:
    async for _ in conn.cursor().stream("SELECT pg_sleep(0.1) FROM generate_series(1, 20)"):
        pass


async def _query(conn: Any) -> None:
    await conn.execute("SELECT pg_sleep(2)")


async def _server_cursor(conn: Any) -> None:
    async with conn.transaction(), conn.cursor("left", withhold=True) as cursor:
        await cursor.execute("SELECT pg_sleep(0.01) FROM generate_series(1, 1000)")
        async for _ in cursor:
            pass


@pytest.mark.parametrize("use", [_many, _pipeline, _copy, _stream, _query, _server_cursor])
def test_a_cancelled_statement_affects_nobody_else(database: Database, use: Use) -> None:
    wrapper = database(OPTIONS=TWO)
    ask(wrapper)
    wrapper.close()

    async def work() -> None:
        async with aio.connection(ALIAS) as conn:
            await use(conn)

    async def cancel(after: float) -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answers = await asyncio.gather(*(first("SELECT %s::int", n) for n in range(4)))
        assert answers == [0, 1, 2, 3]

    for after in (0.02, 0.25):
        run(cancel(after))
    check_whole(wrapper)
    running = "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'pg_sleep' AND state = 'active'"
    wait_until(lambda: ask(wrapper, f"{running} AND pid <> pg_backend_pid()") == 0, "the end")
    assert ask(wrapper, "SELECT count(*) FROM notes") == 0


def test_a_checkout_can_be_cancelled_at_every_await(wrapper: Any, shared: Server) -> None:
    """Whether it waits in the queue, or for the answer to a ping."""
    ask(wrapper)
    wrapper.close()

    def step(coroutine: Coroutine[Any, Any, Any], awaits: int) -> Coroutine[Any, Any, bool]:
        async def cancel_there() -> bool:
            task = asyncio.ensure_future(coroutine)
            for _ in range(awaits):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                return True
            return False

        return cancel_there()

    async def cancel_everywhere() -> int:
        cancelled = 0
        for awaits in range(40):
            for entry in wrapper.pool.entries:
                entry.suspect()
            waiters = asyncio.gather(*(first("SELECT %s::int", n) for n in range(3)))
            cancelled += await step(first("SELECT 9"), awaits)
            assert await waiters == [0, 1, 2]
        return cancelled

    assert run(cancel_everywhere()) > 10
    check_whole(wrapper)
    assert wrapper.pool.get_stats().get("requests_errors", 0) == 0  # of clients that went away


def test_a_connection_that_is_closed_in_a_statement_never_exceeds_the_limit(
    database: Database, shared: Server
) -> None:
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 2, "timeout": 20}})

    async def close() -> None:
        async with aio.connection(ALIAS) as conn:
            task = asyncio.ensure_future(conn.execute("SELECT pg_sleep(30)"))
            await asyncio.sleep(0.1)
            await conn.close()
            with pytest.raises(psycopg.Error):
                await task

    with Watch(shared) as watch:
        for _ in range(6):
            run(close())
        ask(wrapper)
    assert watch.most <= 2


def test_a_statement_that_is_cancelled_again_and_again_never_exceeds_the_limit(
    database: Database, shared: Server
) -> None:
    """As anyio's scopes do. psycopg then closes the connection, and the statement may go on."""
    wrapper = database(
        HOST="127.0.0.1", OPTIONS={"pool": {"min_size": 1, "max_size": 2, "timeout": 20}}
    )

    async def use(turns: int) -> None:
        task = asyncio.ensure_future(first("SELECT pg_sleep(30)"))
        await asyncio.sleep(0.1)
        while not task.done():
            task.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(0)

    with Watch(shared) as watch:
        for turns in range(8):
            run(use(turns))
        run(first())
    assert watch.most <= 2
    check_whole(wrapper)


def test_what_is_written_after_a_cancelled_block_is_there_or_fails(
    wrapper: Any, shared: Server
) -> None:

    async def block(conn: Any) -> None:
        async with conn.transaction(), conn.transaction():
            await conn.execute("SELECT 1")

    async def write(key: int) -> tuple[bool, bool]:
        cancelled = written = False
        async with aio.connection(ALIAS) as conn:
            task = asyncio.ensure_future(block(conn))
            for _ in range(key):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except (asyncio.CancelledError, psycopg.Error):
                cancelled = True
            with suppress(psycopg.Error):
                await conn.execute("INSERT INTO notes VALUES (%s)", [key])
                written = True
        return cancelled, written

    done = {key: run(write(key)) for key in range(60)}
    assert sum(cancelled for cancelled, _ in done.values()) > 2
    with shared.admin() as admin:
        there = {key for (key,) in admin.execute("SELECT n FROM notes").fetchall()}
        admin.execute("TRUNCATE notes")
    assert there == {key for key, (_, written) in done.items() if written}


def test_many_cancelled_tasks_lose_no_connection_and_no_answer(database: Database) -> None:
    wrapper = database(OPTIONS={"pool": {"min_size": 4, "max_size": 4, "timeout": 60}})

    async def one(n: int) -> bool:
        assert await first("SELECT %s::int FROM pg_sleep(0.001)", n) == n
        return True

    async def many() -> None:
        tasks = [asyncio.create_task(one(n)) for n in range(1000)]
        for n, task in enumerate(tasks):
            if n % 5:
                asyncio.get_running_loop().call_later((n % 97) / 200, task.cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        served = [result for result in results if result is True]
        cancelled = [r for r in results if isinstance(r, asyncio.CancelledError)]
        assert len(served) + len(cancelled) == 1000
        assert len(served) >= 200

    run(many())
    check_whole(wrapper)


# After the end


async def test_what_was_returned_fails_and_touches_nobody(wrapper: Any) -> None:
    async with aio.connection(ALIAS) as conn:
        cursor = await conn.execute("SELECT 1 UNION SELECT 2 ORDER BY 1")
        server_cursor = conn.cursor("mine")
        notices: list[Any] = []
        conn.add_notice_handler(notices.append)
    async with aio.connection(ALIAS) as next_one:
        assert await cursor.fetchall() == [(1,), (2,)]
        for late in (
            conn.execute("SELECT 1"),
            cursor.execute("SELECT 1"),
            cursor.executemany("SELECT %s", [[1]]),
            cursor.stream("SELECT 1").__anext__(),
            server_cursor.execute("SELECT 1"),
            conn.commit(),
            conn.rollback(),
            conn.set_autocommit(False),
            conn.notifies().__anext__(),
            conn.transaction().__aenter__(),
            cursor.copy("COPY notes TO STDOUT").__aenter__(),
        ):
            with pytest.raises(psycopg.Error, match=r"returned|closed"):
                await late
        await conn.close()
        await conn.cancel_safe()
        conn.prepare_threshold = 0
        assert next_one.prepare_threshold != 0
        await next_one.execute("DO $$ BEGIN RAISE NOTICE 'to the next one'; END $$")
        assert await (await next_one.execute("SELECT 1")).fetchone() == (1,)
        [entry] = wrapper.pool.entries
        assert not entry.spoiled
        assert entry.suspicion is None
    assert not notices


def test_a_connection_that_another_task_still_uses_is_closed(database: Database) -> None:
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 2, "timeout": 20}})

    async def use() -> None:
        async with aio.connection(ALIAS) as conn:
            pid = conn.info.backend_pid
            other = asyncio.create_task(conn.execute("SELECT pg_sleep(30)"))
            await asyncio.sleep(0.1)
        answers = await asyncio.gather(*(first() for _ in range(8)))
        assert pid not in answers
        with pytest.raises(psycopg.Error):
            await other

    began = monotonic()
    run(use())
    assert monotonic() - began < 10 + LATE
    check_whole(wrapper)


async def _in_a_pipeline(conn: Any, seconds: float) -> None:
    async with conn.pipeline():
        await asyncio.sleep(seconds)


async def test_a_pipeline_of_another_task_touches_no_later_holder(wrapper: Any) -> None:
    async with aio.connection(ALIAS) as conn:
        soon = asyncio.create_task(_in_a_pipeline(conn, 0.05))
        late = asyncio.create_task(_in_a_pipeline(conn, 60))
        await soon
    async with aio.connection(ALIAS) as conn:
        assert conn.pgconn.pipeline_status == 0
        async with conn.pipeline():
            late.cancel()
            await asyncio.wait([late])
            cursor = await conn.execute("SELECT 2")
        assert await cursor.fetchone() == (2,)


def test_close_within_the_block_returns_it_if_the_pool_is_to(database: Database) -> None:
    """`close_returns` is psycopg_pool's option."""
    pool = database(OPTIONS={"pool": {**ONE["pool"], "close_returns": True}}).pool

    async def use() -> None:
        async with aio.connection(ALIAS) as conn:
            with pytest.raises(ValueError, match="can't return"):
                pool.putconn(conn)
            pid = conn.info.backend_pid
            await conn.close()
            assert conn.closed
            assert await first() == pid

    run(use())
    assert pool.getconn().execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("patience", [None, 0.0, 0.002])
async def test_a_request_to_cancel_meets_no_later_holder(
    wrapper: Any, patience: float | None
) -> None:
    """It is under way at the return, or its task was cancelled meanwhile."""
    for turns in range(12):
        async with aio.connection(ALIAS) as conn:
            await conn.execute("SELECT 1")
            request = asyncio.create_task(conn.cancel_safe())
            for _ in range(1 + turns % 4):
                await asyncio.sleep(patience or 0)
            if patience is not None:
                request.cancel()
                await asyncio.wait([request])
        await first("SELECT pg_sleep(0.05)")
        await asyncio.gather(request, return_exceptions=True)


async def test_an_iteration_that_was_broken_off_costs_its_connection_only(wrapper: Any) -> None:
    async with aio.connection(ALIAS) as conn:
        async for _ in conn.cursor().stream("SELECT generate_series(1, 100000)"):
            break
    async with aio.connection(ALIAS) as conn:
        await conn.execute("LISTEN news")
        async for _ in conn.notifies(timeout=0.01):
            pass
    assert await first("SELECT 1") == 1


@pytest.mark.usefixtures("wrapper")
async def test_a_connection_that_a_task_has_dropped_comes_back() -> None:
    await aio.connection(ALIAS).__aenter__()
    assert await first("SELECT 1", timeout=20) == 1


# Waiting


def test_tasks_of_two_loops_and_threads_are_served_in_turn(database: Database) -> None:
    wrapper = database(OPTIONS={"pool": {"min_size": 2, "max_size": 2, "timeout": 30}})
    served: dict[str, int] = {}

    def count(kind: str) -> None:
        served[kind] = served.get(kind, 0) + 1

    until = monotonic() + 1.5

    async def task(kind: str) -> None:
        while monotonic() < until:
            await first("SELECT pg_sleep(0.002)")
            count(kind)

    async def tasks(kind: str) -> None:
        await asyncio.gather(*(task(kind) for _ in range(5)))

    def thread() -> None:
        while monotonic() < until:
            ask(connections[ALIAS], "SELECT pg_sleep(0.002)")
            connections[ALIAS].close()
            count("thread")

    calls = [Call(lambda kind=kind: run(tasks(kind))) for kind in ("one", "two")]
    for call in [*calls, *(Call(thread) for _ in range(5))]:
        call.result(within=60)
    assert min(served.values()) > 0.7 * max(served.values()), served
    check_whole(wrapper)


async def test_gather_runs_four_queries_at_once(database: Database) -> None:
    database(OPTIONS={"pool": {"min_size": 4, "max_size": 4, "timeout": 30}})
    await asyncio.gather(*(first("SELECT pg_sleep(0.1)") for _ in range(4)))
    began = monotonic()
    await asyncio.gather(*(first("SELECT pg_sleep(0.5)") for _ in range(4)))
    assert monotonic() - began < 1.5


def test_a_nested_checkout_times_out_and_names_its_own_task(wrapper: Any) -> None:

    async def nested() -> None:
        async with aio.connection(ALIAS):
            [holder] = wrapper.pool.holders()
            assert holder.who.endswith(".nested'")
            with pytest.raises(PoolTimeout, match=r"Task '.*\.nested' has held a connection for"):
                await first(timeout=0.2)

    run(nested())


async def test_too_many_waiting_tasks_are_refused(database: Database) -> None:
    options = {"min_size": 1, "max_size": 1, "max_waiting": 1, "timeout": 20}
    database(OPTIONS={"pool": options})
    async with aio.connection(ALIAS):
        waiting = asyncio.create_task(first("SELECT 1"))
        await asyncio.sleep(0.1)
        with pytest.raises(TooManyRequests):
            await first()
    assert await waiting == 1


@pytest.mark.usefixtures("wrapper")
def test_loops_one_after_another_use_the_same_connections() -> None:
    assert len({run(first()) for _ in range(20)}) == 1


def test_a_loop_that_ends_under_a_waiter_costs_nobody_a_connection(wrapper: Any) -> None:
    pool = wrapper.pool
    pool.open()
    conn = pool.getconn()
    kept: list[Any] = []

    def abandoned() -> None:
        loop = asyncio.new_event_loop()
        kept.append(loop.create_task(first()))
        loop.call_later(0.05, loop.stop)
        loop.run_forever()
        loop.close()

    Call(abandoned).result(within=20)
    waiting = Call(pool.getconn)
    wait_until(lambda: pool.statistics.queued >= 2, "the thread to wait")
    wait_until(lambda: len(pool.queue.waiters) == 1, "the other to be forgotten")
    pool.putconn(conn)
    pool.putconn(waiting.result(within=20))
    kept.clear()
    gc.collect()


def test_a_loop_that_ends_with_a_connection_gives_it_back(wrapper: Any) -> None:

    async def hold() -> None:
        async with aio.connection(ALIAS):
            await asyncio.sleep(60)

    def abandoned() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(hold())
        loop.call_later(0.2, loop.stop)
        loop.run_forever()
        loop.close()
        assert not task.done()

    Call(abandoned).result(within=20)
    assert ask(wrapper, "SELECT 1") == 1


# Faults


def test_a_restart_costs_a_task_no_error(database: Database, server: Server) -> None:
    database.server = server
    database()
    run(first())
    server.restart()
    assert run(first("SELECT 1")) == 1


def test_a_frozen_server_costs_a_task_its_timeout_and_no_more(
    database: Database, server: Server
) -> None:
    database.server = server
    wrapper = database(OPTIONS=ONE)
    run(first())
    wrapper.pool.ping_after = -1.0
    with server.suspended():
        began = monotonic()
        with pytest.raises(PoolTimeout):
            run(first(timeout=1))
        assert 0.9 < monotonic() - began < 1 + LATE
    assert run(first("SELECT 1", timeout=20)) == 1


async def test_the_loop_runs_on_while_the_projects_check_blocks(database: Database) -> None:
    checked = []

    def check(conn: Any) -> None:
        checked.append(conn)
        sleep(0.5)

    database(OPTIONS={"pool": {**ONE["pool"], "check": check}})
    task = asyncio.create_task(first("SELECT 1"))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert await task == 1
    assert turns > 5
    assert checked


def test_the_projects_reset_is_called_after_a_task_too(database: Database) -> None:
    resets: list[Any] = []

    def reset(conn: Any) -> None:
        resets.append(Thread)
        conn.execute("SELECT 1")

    wrapper = database(OPTIONS={"pool": {**ONE["pool"], "reset": reset}})

    async def use() -> None:
        async with aio.connection(ALIAS) as conn:
            await conn.execute("BEGIN")
        assert await first("SELECT 1") == 1

    run(use())
    check_whole(wrapper)
    assert len(resets) == 2


# Two doors are two transactions


def test_inside_of_atomic_it_raises_and_says_why(database: Database) -> None:
    database()
    match = "own, which is not in that transaction.*TransactionTestCase"
    with transaction.atomic(ALIAS):
        with pytest.raises(TransactionManagementError, match=match):
            run(first())
        with pytest.raises(TransactionManagementError, match=match):
            async_to_sync(first)()

    async def in_a_view() -> None:
        def sync_part() -> None:
            with transaction.atomic(ALIAS):
                async_to_sync(first)()

        with pytest.raises(TransactionManagementError, match=match):
            await sync_to_async(sync_part)()
        assert await first("SELECT 1") == 1

        await sync_to_async(lambda: connections[ALIAS].close())()

    run(in_a_view())
    with transaction.atomic(ALIAS):
        assert Call(lambda: run(first("SELECT 1"))).result(within=20) == 1


def test_a_block_can_be_entered_once(database: Database) -> None:
    wrapper = database(OPTIONS=TWO)

    async def use() -> None:
        door = aio.connection(ALIAS)
        two = asyncio.gather(door.__aenter__(), door.__aenter__(), return_exceptions=True)
        assert sum(isinstance(result, RuntimeError) for result in await two) == 1
        await door.__aexit__(None, None, None)
        async with door:
            with pytest.raises(RuntimeError, match="entered before"):
                await door.__aenter__()

    run(use())
    check_whole(wrapper)


def test_reports_name_tasks(database: Database) -> None:
    wrapper = database()

    async def stream() -> None:
        async with aio.connection(ALIAS) as conn:
            await conn.execute("BEGIN")
            await asyncio.sleep(0.3)

    async def use() -> None:
        tasks = [asyncio.create_task(stream()) for _ in range(2)]
        await asyncio.sleep(0.2)
        [group] = group_holders(wrapper.pool.holders(), {})
        assert holder_name(group).startswith("task tests.aio.test_connection.")
        assert holder_name(group).endswith(".stream")
        assert (group.count, dict(group.pins)) == (2, {"a transaction": 2})
        assert wrapper.pool.core.count_pins() == ({"transaction": 2}, 0)
        assert re.match(r"Held by task tests\.aio\..*\.stream \(2\)\.", held_by(wrapper.pool.core))
        await asyncio.gather(*tasks)

    run(use())
