"""A task waits for a connection while its loop does not run or is blocked: nobody else does."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from time import monotonic, sleep
from typing import Any

import pytest
from psycopg_pool import PoolTimeout

from abs_orm_app import aio
from abs_orm_app.pool.closing import CLOSED
from abs_orm_app.pool.pool import HardenedPool
from tests.aio.conftest import check_whole
from tests.aio.test_connection import first
from tests.support.databases import ALIAS, ONE, Database, ask
from tests.support.pools import APP, LATE, Call
from tests.support.processes import Watch
from tests.support.servers import Server, wait_until

TASKS = 40
Return = Callable[[asyncio.AbstractEventLoop, HardenedPool, Any], object]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def run_for(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    loop.run_until_complete(asyncio.sleep(seconds))


@pytest.fixture
def pool(wrapper: Any) -> HardenedPool:
    pool: HardenedPool = wrapper.pool
    pool.open(wait=True)
    return pool


def begun(loop: asyncio.AbstractEventLoop, pool: HardenedPool) -> tuple[Any, asyncio.Task[Any]]:
    """The pool's only connection, and a task that waits for it."""
    conn = pool.getconn()
    task = loop.create_task(first("SELECT 1"))
    run_for(loop, 0.1)
    return conn, task


def pinging(
    server: Server, loop: asyncio.AbstractEventLoop, pool: HardenedPool, *queries: str
) -> asyncio.Task[Any]:
    """A task whose loop rests while it pings the only connection; then the server answers."""
    [entry] = pool.entries
    entry.suspect()
    with server.suspended():
        task = loop.create_task(first(*queries))
        run_for(loop, 0.2)
    return task


def while_it_rests(_loop: asyncio.AbstractEventLoop, pool: HardenedPool, conn: Any) -> None:
    pool.putconn(conn)


def in_its_last_turn(loop: asyncio.AbstractEventLoop, pool: HardenedPool, conn: Any) -> None:
    """The task was handed the connection, and is not woken any more."""
    loop.call_soon(pool.putconn, conn)
    loop.call_soon(loop.stop)
    loop.run_forever()


@pytest.mark.parametrize("give_back", [while_it_rests, in_its_last_turn])
def test_a_thread_gets_what_a_task_of_a_resting_loop_does_not_take(
    wrapper: Any, pool: HardenedPool, loop: asyncio.AbstractEventLoop, give_back: Return
) -> None:
    conn = pool.getconn()
    tasks = [loop.create_task(first("SELECT %s::int", n)) for n in range(TASKS)]
    run_for(loop, 0.1)
    thread = Call(pool.getconn)
    wait_until(lambda: pool.statistics.queued == TASKS + 1, "the thread to wait")
    give_back(loop, pool, conn)
    conn = thread.result(within=LATE)
    pool.putconn(conn)
    answers = asyncio.gather(*tasks)
    assert loop.run_until_complete(asyncio.wait_for(answers, LATE)) == list(range(TASKS))
    check_whole(wrapper)
    assert pool.get_stats()["requests_queued"] == TASKS + 1


def test_a_thread_gets_what_a_task_of_a_blocked_loop_does_not_take(
    pool: HardenedPool, loop: asyncio.AbstractEventLoop
) -> None:
    conn, task = begun(loop, pool)
    thread = Call(pool.getconn)
    wait_until(lambda: pool.statistics.queued == 2, "the thread to wait")
    loop.call_soon(pool.putconn, conn)
    loop.call_soon(sleep, LATE)
    blocked = Call(run_for, loop, 0)
    conn = thread.result(within=LATE - 1)
    assert blocked.is_alive()
    blocked.result(within=2 * LATE)
    assert not task.done()
    pool.putconn(conn)
    assert loop.run_until_complete(task) == 1


def test_what_a_resting_task_does_not_take_is_there_for_who_comes_later(
    wrapper: Any, pool: HardenedPool, loop: asyncio.AbstractEventLoop
) -> None:
    conn, task = begun(loop, pool)
    in_its_last_turn(loop, pool, conn)
    assert ask(wrapper, "SELECT 2") == 2
    wrapper.close()
    assert loop.run_until_complete(task) == 1


def test_a_task_whose_loop_rests_beyond_its_deadline_times_out(
    wrapper: Any, pool: HardenedPool, loop: asyncio.AbstractEventLoop
) -> None:
    conn = pool.getconn()
    tasks = [loop.create_task(first(timeout=0.5)) for _ in range(2)]
    run_for(loop, 0.1)
    in_its_last_turn(loop, pool, conn)
    check_whole(wrapper)
    conn = pool.getconn()
    sleep(0.5)
    for task in tasks:
        with pytest.raises(PoolTimeout):
            loop.run_until_complete(task)
    pool.putconn(conn)


def test_a_task_that_is_cancelled_while_its_loop_rests_gives_back_nothing_twice(
    wrapper: Any, pool: HardenedPool, loop: asyncio.AbstractEventLoop
) -> None:
    for taken_back in (False, True):
        conn, task = begun(loop, pool)
        in_its_last_turn(loop, pool, conn)
        if taken_back:
            check_whole(wrapper)
            conn = pool.getconn()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        if taken_back:
            assert not pool.idle
            pool.putconn(conn)
        check_whole(wrapper)


def test_closing_the_pool_ends_the_session_that_a_resting_task_has_not_taken(
    database: Database, wrapper: Any, pool: HardenedPool, loop: asyncio.AbstractEventLoop
) -> None:
    conn, task = begun(loop, pool)
    in_its_last_turn(loop, pool, conn)
    del conn
    wrapper.close_pool()
    wait_until(lambda: database.server.sessions(APP) == 0, "the session to end")
    assert loop.run_until_complete(task) == 1  # from the pool that the alias has now


def test_the_slot_of_a_task_whose_loop_was_closed_during_a_ping_comes_back(
    database: Database, server: Server
) -> None:
    database.server = server
    wrapper = database(OPTIONS=ONE)
    pool = wrapper.pool
    pool.open(wait=True)
    for kept in (True, False):
        loop = asyncio.new_event_loop()
        tasks = [pinging(server, loop, pool)]
        loop.close()
        assert not pool.idle
        assert not tasks[0].done()
        if not kept:
            tasks.clear()
        del loop
        assert ask(wrapper, "SELECT 1") == 1
        wrapper.close()
        tasks.clear()
        gc.collect()
        check_whole(wrapper)
        assert len(pool.idle) == 1
    assert pool.get_stats()["connections_leaked"] == 2


def test_a_thread_gets_the_slot_of_a_task_whose_loop_rests_during_a_ping(
    database: Database, server: Server, loop: asyncio.AbstractEventLoop
) -> None:
    database.server = server
    wrapper = database(OPTIONS=ONE)
    wrapper.pool.open(wait=True)
    for answered in (True, False):
        for entry in wrapper.pool.entries:
            entry.suspect()
        with server.suspended():
            task = loop.create_task(first("SELECT 1"))
            run_for(loop, 0.2)
            if not answered:
                thread = Call(wrapper.pool.getconn)
                sleep(0.5)
        if answered:
            thread = Call(wrapper.pool.getconn)
        conn = thread.result(within=LATE)
        assert not task.done()
        waiting = loop.create_task(first("SELECT 2"))
        run_for(loop, 0.2)
        wrapper.pool.putconn(conn)
        both = asyncio.gather(task, waiting)
        assert list(loop.run_until_complete(asyncio.wait_for(both, LATE))) == [1, 2]
        check_whole(wrapper)
        assert len(wrapper.pool.idle) == 1


def test_a_task_goes_on_while_the_pool_takes_the_connection_that_it_pinged(
    database: Database, server: Server, loop: asyncio.AbstractEventLoop
) -> None:
    """The server has answered, and the handle is still open."""
    database.server = server
    wrapper = database(OPTIONS=ONE)
    wrapper.pool.open(wait=True)
    [entry] = wrapper.pool.entries
    task = pinging(server, loop, wrapper.pool, "SELECT 1")
    thread = Call(wrapper.pool.getconn)
    wait_until(lambda: entry.pgconn is CLOSED, "the pool to take it")
    run_for(loop, 0.1)
    wrapper.pool.putconn(thread.result(within=LATE))
    assert loop.run_until_complete(task) == 1
    check_whole(wrapper)


def test_loops_that_run_now_and_then_lose_no_connection(database: Database) -> None:
    """Beside threads, and loops that end under their tasks."""
    wrapper = database(OPTIONS={"pool": {"min_size": 3, "max_size": 3, "timeout": 20}})
    pool = wrapper.pool
    pool.open(wait=True)
    until = monotonic() + 3

    def thread() -> int:
        served = 0
        while monotonic() < until:
            with pool.connection() as conn:
                conn.execute("SELECT pg_sleep(0.001)")
            served += 1
        return served

    def rest_and_run(seconds: float) -> int:
        served = 0
        while monotonic() < until:
            loop = asyncio.new_event_loop()
            tasks = [loop.create_task(first("SELECT %s::int", n)) for n in range(8)]
            for _ in range(5):
                run_for(loop, 0.002)
                sleep(seconds)
            if served % 2:
                loop.run_until_complete(asyncio.gather(*tasks))
            served += sum(task.done() for task in tasks)
            for task in tasks:
                task.cancel()
            if served % 3:
                with suppress(asyncio.CancelledError):
                    loop.run_until_complete(asyncio.gather(*tasks))
            loop.close()
        return served

    calls = [Call(thread) for _ in range(4)]
    calls += [Call(partial(rest_and_run, seconds)) for seconds in (0, 0.003, 0.3)]
    for call in calls:
        assert call.result(within=60) > 3
    gc.collect()  # of a loop that is closed, which holds a connection
    check_whole(wrapper)
    assert len(pool.idle) == 3


async def hold() -> None:
    async with aio.connection(ALIAS) as conn:
        await conn.execute("SELECT pg_sleep(60)")


@pytest.mark.parametrize("kept", [False, True])
def test_the_slot_of_a_task_whose_loop_is_closed_comes_back_at_once(
    wrapper: Any, kept: bool, shared: Server
) -> None:
    tasks = []
    with Watch(shared) as watch:
        for _ in range(4):
            loop = asyncio.new_event_loop()
            tasks.append(loop.create_task(hold()))
            run_for(loop, 0.1)
            loop.close()
            assert not tasks[-1].done()
            if not kept:
                tasks.clear()
            del loop
            began = monotonic()
            assert ask(wrapper, "SELECT 1") == 1
            assert monotonic() - began < LATE
            wrapper.close()
    assert watch.most == 1
    assert wrapper.pool.get_stats()["connections_leaked"] == 4
    tasks.clear()
    gc.collect()
    assert ask(wrapper, "SELECT 1") == 1
