"""A process that is out of threads or of file descriptors."""

from __future__ import annotations

import gc
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest

from tests.pool.test_memory import address_space
from tests.support.pools import LATE, Call, opened, ours, pid, use
from tests.support.processes import run
from tests.support.servers import Server, wait_until

GIB = 2**30
TIMEOUT = 12.0
LIMIT = 2.0  # seconds for `reset` and `check` in a pool with a timeout of 4 s


# Threads


@contextmanager
def free_threads(count: int) -> Iterator[None]:
    """Let the process start that many more threads at a time, for real: the stack of each takes a
    GiB of its address space, and there is no more.
    """
    before = threading.stack_size(GIB)
    most = address_space() + count * GIB + GIB // 2
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        threading.stack_size(before)


def threads_come_back(conninfo: str, free: str) -> None:
    """A request that waits meanwhile is served soon after, and not at its deadline."""
    pool = ours(conninfo, min_size=1, timeout=TIMEOUT)
    served: list[float] = []

    def request() -> None:
        over.wait(20)
        use(pool)
        served.append(monotonic())

    over = threading.Event()
    waiting = Call(request)
    with free_threads(int(free)):
        pool.open()
        over.set()
        sleep(1.0)
    back = monotonic()
    waiting.result(within=TIMEOUT + LATE)
    assert served[0] - back < LATE
    pool.close(timeout=0.1)


def a_connection_comes_back(conninfo: str, free: str) -> None:
    """It serves a request that waits for it, which needs no thread."""
    pool = ours(conninfo, min_size=1, timeout=TIMEOUT)
    pool.open(wait=True, timeout=20)
    conn = pool.getconn()
    go = threading.Event()

    def request() -> None:
        go.wait(20)
        use(pool)

    waiting = Call(request)
    with free_threads(int(free)):
        go.set()
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 1, "it to wait")
        pool.putconn(conn)
        waiting.result(within=LATE)
        use(pool)
    pool.close(timeout=0.1)


def first_use(conninfo: str, free: str) -> None:
    with free_threads(int(free)):
        pool = ours(conninfo, min_size=1, timeout=TIMEOUT)
        pool.open()
        began = monotonic()
        use(pool)
        assert monotonic() - began < LATE
        pool.close(timeout=0.1)


# A first use needs two: one maintains the pools, another one connects.
@pytest.mark.parametrize(
    ("what", "free"),
    [
        (threads_come_back, "0"),
        (threads_come_back, "1"),
        (a_connection_comes_back, "0"),
        (a_connection_comes_back, "1"),
        (first_use, "2"),
    ],
)
def test_a_process_that_is_out_of_threads_serves_requests(
    shared: Server, what: Callable[[str, str], None], free: str
) -> None:
    result = run(shared, what, shared.conninfo, free, within=100)
    assert result.status == 0, result.errors


# File descriptors


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Have the process use up its file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, hard))
    taken = []
    try:
        while True:
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def serve(conninfo: str) -> None:
    """Checkout and return, of idle connections and of one that others wait for, pinged or not."""
    with opened(ours, conninfo, min_size=2, timeout=TIMEOUT) as pool, no_descriptors():
        for pause in (0.0, 0.7):
            sleep(pause)
            for call in [Call(use, pool) for _ in range(6)]:
                call.result(within=LATE)
        conn = pool.getconn()
        conn.execute("BEGIN")
        pool.putconn(conn)
        assert pool.get_stats()["connections_num"] == 2


def hang(conn: psycopg.Connection[Any]) -> None:
    conn.execute("SELECT pg_sleep(12)")


def reset(conninfo: str) -> None:
    with opened(ours, conninfo, min_size=1, timeout=4, reset=hang) as pool:
        conn = pool.getconn()
        with no_descriptors():
            Call(pool.putconn, conn).result(within=LIMIT + LATE)
            assert conn.closed


def check(conninfo: str) -> None:
    with opened(ours, conninfo, min_size=1, timeout=4, check=hang) as pool, no_descriptors():
        call = Call(pool.getconn, 4)
        call.join(4 + LATE)
        assert not call.is_alive(), "the check goes on after the deadline"
        assert isinstance(call.error, psycopg.OperationalError)


def roll_back(conninfo: str) -> None:
    with opened(ours, conninfo, min_size=1, timeout=4) as pool:
        conn = pool.getconn()
        conn.execute("BEGIN")
        with no_descriptors():
            backend = pid(conn)
            os.kill(backend, signal.SIGSTOP)
            try:
                Call(pool.putconn, conn).result(within=LIMIT + LATE)
            finally:
                os.kill(backend, signal.SIGCONT)
            assert conn.closed


def fork(conninfo: str) -> None:
    """The child leaves the parent's sessions alone, in use and idle."""
    with opened(ours, conninfo, min_size=4, timeout=TIMEOUT) as pool:
        held = [pool.getconn() for _ in range(2)]
        before = sorted(map(pid, [*held, *pool.idle]))
        with no_descriptors():
            child = os.fork()
            if child == 0:
                held.clear()
                del pool
                gc.collect()
                os._exit(0)
            os.waitpid(child, 0)
        sleep(0.2)  # time in which a session that the child has closed would end
        for conn in held:
            assert conn.execute("SELECT 1").fetchone() == (1,)
            pool.putconn(conn)
        conns = [pool.getconn() for _ in range(4)]
        assert sorted(map(pid, conns)) == before
        for conn in conns:
            assert conn.execute("SELECT 1").fetchone() == (1,)
            pool.putconn(conn)


def connect(conninfo: str) -> None:
    """The error says whose limit it is: neither the server nor its name is to blame."""
    for host in ("host=localhost", ""):
        with (
            opened(ours, f"{conninfo} {host}", min_size=1, max_size=2, timeout=TIMEOUT) as pool,
            pool.connection(),
            no_descriptors(),
        ):
            with pytest.raises(psycopg.OperationalError, match="limit \\(ulimit -n\\)") as caught:
                pool.getconn(1.0)
            assert "this process" in str(caught.value)


@pytest.mark.parametrize("what", [connect, serve, reset, check, roll_back, fork])
def test_a_process_that_is_out_of_descriptors_keeps_its_promises(
    shared: Server, what: Callable[[str], None]
) -> None:
    result = run(shared, what, shared.conninfo, within=100)
    assert result.status == 0, result.errors
