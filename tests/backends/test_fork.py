"""After a fork, the child has its own connections, and the parent keeps its own."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import psutil
import pytest
from django.db import connection, connections, transaction
from psycopg_pool import PoolClosed

from abs_orm_app.backends.postgresql.base import DatabaseWrapper
from abs_orm_app.config.application_name import process_name
from abs_orm_app.pool import threads
from abs_orm_app.pool.housekeeping import THREAD
from abs_orm_app.pool.pool import HardenedPool
from tests.support.processes import OF_CLIENTS, backend, run
from tests.support.proxy import Proxy
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.server({"log_min_messages": "debug1"})

SIZE = 4
STOCK = "django.db.backends.postgresql"

FORKS: dict[str, Callable[[], int]] = {
    "fork": os.fork,
    # Like a server written in C: no hook of Python runs.
    "fork_in_c": ctypes.PyDLL(None).fork,
}
CHILD_DEADLINE = 20.0  # seconds


def end_at_once() -> None:
    os._exit(0)


def end_as_a_program() -> None:
    sys.exit(0)


def end_after_collecting_garbage() -> None:
    gc.collect()
    os._exit(0)


ENDS = [end_at_once, end_as_a_program, end_after_collecting_garbage]


# Functions that run in a process of their own


def fork(kind: str, child: Callable[[], None], end: Callable[[], None] = end_at_once) -> None:
    """Run `child`, then `end`, in a fork; fail if it does not end with exit code 0."""
    if kind == "fork_in_c":
        # Nobody resets the locks of other threads then: those of OpenSSL, which a thread takes as
        # it ends, those of `threading`.
        wait_until(lambda: not threads_that_connect(), "the pool to be filled")
        wait_until(lambda: not threads_that_end(), "the pool's threads to have ended")
    pid = FORKS[kind]()
    if pid == 0:
        try:
            child()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        end()
    deadline = time.monotonic() + CHILD_DEADLINE
    ended, status = 0, 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)
    if not ended:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert ended, f"the child hangs: {end.__name__}"
    assert os.waitstatus_to_exitcode(status) == 0, f"the child failed: {end.__name__}"


def thread_names() -> list[str]:
    return [thread.name for thread in threads.running()]


def threads_that_end() -> set[int]:
    """What the system still counts, and nobody in Python does."""
    known = {thread.native_id for thread in threads.running()}
    known |= {thread.native_id or 0 for thread in threading.enumerate()}
    return {thread.id for thread in psutil.Process().threads()} - known


def threads_that_connect() -> list[str]:
    return [name for name in thread_names() if name.endswith("-connector")]


def sessions() -> set[int]:
    """The backend pids of all sessions on the server, of any process."""
    with connection.cursor() as cursor:
        cursor.execute(f"select pid from pg_stat_activity {OF_CLIENTS}")
        return {row[0] for row in cursor.fetchall()}


def named() -> str:
    """The application_name of this thread's session."""
    with connection.cursor() as cursor:
        cursor.execute("select current_setting('application_name')")
        return str(cursor.fetchone()[0])


def the_wrapper() -> DatabaseWrapper:
    return cast(DatabaseWrapper, connections["default"])


def filled_pool() -> HardenedPool:
    connection.close()
    pool = the_wrapper().pool
    assert pool is not None
    pool.open(wait=True, timeout=CHILD_DEADLINE)
    return pool


def check_no_session_but(expected: set[int]) -> None:
    wait_until(lambda: sessions() == expected, "the sessions of the child to end, and no others")


@contextmanager
def a_thread_with_a_connection() -> Iterator[None]:
    holding, end = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            backend()
            holding.set()
            end.wait(CHILD_DEADLINE)
        connection.close()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert holding.wait(CHILD_DEADLINE)
    try:
        yield
    finally:
        end.set()
        thread.join(1.0)  # a child that was forked in C has no such thread


def forks_with_connections(kind: str) -> None:
    """One connection is in use here, one in another thread, two are idle."""
    pool = filled_pool()
    mine, all_mine = backend(), sessions()

    def child() -> None:
        assert backend() not in all_mine
        assert named() == process_name("abs_project")
        filled_pool()
        assert len(sessions() - all_mine) == SIZE
        assert the_wrapper().pool is not pool

    with a_thread_with_a_connection():
        for end in ENDS:
            fork(kind, child, end)
            assert backend() == mine
            check_no_session_but(all_mine)
        pool.check()
    assert pool.get_stats().get("connections_lost", 0) == 0
    assert sessions() == all_mine


def forks_in_an_atomic_block(kind: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("create table note (text text)")

    def write(text: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute("insert into note values (%s)", [text])
            cursor.execute("select pg_current_xact_id()::text::bigint")
            return int(cursor.fetchone()[0])

    def child() -> None:
        with transaction.atomic():
            write("of the child")

    with transaction.atomic(), transaction.atomic():
        number = write("of the parent")
        for end in ENDS:
            fork(kind, child, end)
        assert write("of the parent") == number, "it is not the same transaction any more"
    with connection.cursor() as cursor:
        cursor.execute("select text from note order by text")
        texts = [row[0] for row in cursor.fetchall()]
    assert texts == ["of the child"] * len(ENDS) + ["of the parent"] * 2


def forks_and_uses_nothing(kind: str) -> None:
    filled_pool()
    all_mine = sessions()
    for end in ENDS:
        fork(kind, lambda: None, end)
    time.sleep(0.1)  # time in which a session that the child closed would end
    assert sessions() == all_mine


def forks_and_closes_the_pool(kind: str) -> None:
    """Like a hook for forked workers that was written for Django's own pool."""
    filled_pool()
    all_mine = sessions()

    def child() -> None:
        began = time.monotonic()
        connection.close_pool()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 4  # waiting for the parent's threads takes 5 s
        assert backend() not in all_mine

    for end in ENDS:
        fork(kind, child, end)
    check_no_session_but(all_mine)


def forks_with_a_connection_of_a_closed_pool(kind: str) -> None:
    mine = backend()
    the_wrapper().close_pool()
    wait_until(lambda: THREAD not in thread_names(), "the housekeeping thread to end")

    def child() -> None:
        assert backend() != mine

    fork(kind, child)
    assert backend() == mine


def forks_where_a_loop_runs() -> None:
    mine = backend()

    async def forks() -> None:
        fork("fork", lambda: None)

    asyncio.run(forks())
    assert backend() == mine


def forks_while_connecting() -> None:
    """Ten forks a few ms apart, each at another state of the connections being opened."""
    backend()  # the first of twenty: the others are being opened
    for _ in range(10):
        before = sessions()

        def child(before: set[int] = before) -> None:
            assert backend() not in before

        fork("fork", child)
        time.sleep(0.007)
    pool = filled_pool()
    pool.check()
    assert pool.get_stats().get("connections_errors", 0) == 0
    assert pool.get_stats().get("connections_lost", 0) == 0
    wait_until(lambda: len(sessions()) == 20, "the sessions of the children to end")


def uses_multiprocessing() -> None:
    pool = filled_pool()
    all_mine = sessions()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=be_a_child, args=(all_mine,))
    process.start()
    process.join(CHILD_DEADLINE)
    assert process.exitcode == 0
    with context.Pool(2) as workers:
        theirs = set(workers.map(be_a_worker, range(20)))
        assert not theirs & all_mine
        workers.close()
        workers.join()
    check_no_session_but(all_mine)
    pool.check()
    assert pool.get_stats().get("connections_lost", 0) == 0


def be_a_child(of_the_parent: set[int]) -> None:
    assert backend() not in of_the_parent


def be_a_worker(_: int) -> int:
    return backend()


# The tests


def check(server: Server, function: Callable[..., None], *arguments: str, **environ: str) -> None:
    """Run the function in a process; fail if it or one of its children fails."""
    # No overflow: where connecting takes long, two attempts may succeed instead of one.
    pool: Any = {"DB_POOL_SIZE": str(SIZE), "DB_MAX_OVERFLOW": "0", "DB_POOL_TIMEOUT": "15"}
    result = run(
        server,
        function,
        *arguments,
        options=["-W", "ignore::DeprecationWarning"],  # of a fork beside threads: 3.12 and later
        **(pool | environ),
    )
    assert not result.errors, result.errors
    assert result.status == 0


@pytest.mark.parametrize("kind", FORKS)
@pytest.mark.parametrize(
    "function",
    [
        forks_with_connections,
        forks_and_uses_nothing,
        forks_and_closes_the_pool,
        forks_with_a_connection_of_a_closed_pool,
    ],
)
def test_a_child_has_its_own_connections_and_does_not_touch_its_parents(
    server: Server, function: Callable[[str], None], kind: str
) -> None:
    check(server, function, kind)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="it uses the connections of its parent"
)
def test_with_djangos_pool_a_child_has_its_own_connections(server: Server) -> None:
    check(server, forks_with_connections, "fork", TEST_ENGINE=STOCK)


@pytest.mark.parametrize("kind", FORKS)
def test_a_child_does_not_run_in_the_atomic_block_of_its_parent(
    server: Server, kind: str, release: str
) -> None:
    check(server, forks_in_an_atomic_block, kind, DB_POOL_RELEASE=release)


def test_a_fork_in_an_event_loop_works_like_any_other(server: Server) -> None:
    check(server, forks_where_a_loop_runs)


def test_a_fork_while_threads_connect_breaks_no_connection(server: Server) -> None:
    with Proxy(server.port, delay=0.005) as proxy:
        url = server.tcp_url.replace(str(server.port), str(proxy.port))
        check(server, forks_while_connecting, DATABASE_URL=url, DB_POOL_SIZE="20")


def test_children_of_multiprocessing_need_no_hook(server: Server) -> None:
    check(server, uses_multiprocessing)
    assert "unexpected EOF" not in server.log


# A pool without the engine


def fork_while_it_executes(conninfo: str) -> None:
    """The child ends its copy of the connection, in whose session the parent's statement runs."""
    with HardenedPool(conninfo, min_size=1, max_size=1) as pool:
        conn = pool.getconn()
        rows = conn.cursor().stream(
            "select repeat('x', 100000), pg_sleep(3 * n) from generate_series(0, 1) n"
        )
        next(rows)

        def give_back() -> None:
            pool.putconn(conn)
            time.sleep(1.2)  # it would be cancelled by a thread
            with pytest.raises(PoolClosed):
                pool.getconn()

        fork("fork", give_back)
        assert len(list(rows)) == 1


def test_a_child_does_not_cancel_what_its_parent_executes(server: Server) -> None:
    result = run(server, fork_while_it_executes, server.conninfo)
    assert result.status == 0, result.errors


def test_a_pool_without_the_engine_is_the_parents_after_a_fork(server: Server) -> None:
    """Nothing of the app but the pool is imported."""
    script = (
        "import os, sys\n"
        "from abs_orm_app.pool import HardenedPool\n"
        "pool = HardenedPool(sys.argv[1], min_size=1, open=True)\n"
        "pool.wait()\n"
        "if os.fork() == 0:\n"
        "    os._exit(not pool.closed)\n"
        "assert os.wait()[1] == 0, 'the child has the connections of its parent'\n"
        "pool.close()\n"
    )
    subprocess.run([sys.executable, "-c", script, server.conninfo], check=True, timeout=20)
