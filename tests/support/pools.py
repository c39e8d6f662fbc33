"""Pools for the tests of the engine: ours, and Django's stock one to compare with."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from time import monotonic, sleep
from typing import Any, TypeVar

import psutil
import pytest
from psycopg import Connection
from psycopg_pool import ConnectionPool

from abs_orm_app.pool.core import Hooks
from abs_orm_app.pool.pool import HardenedPool
from abs_orm_app.pool.roles import MISPLACED_LIFE
from tests.support.servers import Server, wait_until

APP = "pool-under-test"  # application_name, to count sessions by
LATE = 5.0  # seconds that a busy machine may add to what the pool promises

AnyPool = Any  # ours or psycopg_pool's: the same API
MakePool = Callable[..., AnyPool]
T = TypeVar("T")


def ours(conninfo: str, **options: Any) -> AnyPool:
    kwargs = {"autocommit": True, "application_name": APP, **options.pop("kwargs", {})}
    answers = {name: options.pop(name) for name in dir(Hooks) if name in options}
    hooks = hooks_with(**answers)
    return HardenedPool(conninfo, kwargs=kwargs, name="under test", hooks=hooks, **options)


def hooks_with(**answers: Any) -> Hooks:
    """Hooks with these attributes and methods; `clean` makes the pool clean."""
    hooks = Hooks()
    for name, answer in answers.items():
        setattr(hooks, name, answer)
    hooks.cleans = "clean" in answers
    return hooks


def stock(conninfo: str, **options: Any) -> AnyPool:
    """A pool with the parameters that Django's own engine uses with CONN_HEALTH_CHECKS."""
    kwargs = {"autocommit": True, "application_name": APP, **options.pop("kwargs", {})}
    check = ConnectionPool.check_connection
    return ConnectionPool(conninfo, kwargs=kwargs, check=check, open=False, **options)


def compared_with_stock(reason: str) -> pytest.MarkDecorator:
    """Run the test with our pool, and with the stock pool, where it must fail for `reason`."""
    return pytest.mark.parametrize(
        "make",
        [
            pytest.param(ours, id="ours"),
            pytest.param(stock, id="stock", marks=pytest.mark.xfail(strict=True, reason=reason)),
        ],
    )


@contextmanager
def opened(make: MakePool, conninfo: str, **options: Any) -> Iterator[AnyPool]:
    """Open a pool, and fill it but for `filled=False`; close it, without waiting for what hangs."""
    filled = options.pop("filled", True)
    pool = make(conninfo, **options)
    pool.open(wait=filled, timeout=20)
    try:
        yield pool
    finally:
        pool.close(timeout=0.2)


class Call(threading.Thread):
    """Runs `function` in a daemon thread, so a function that hangs does not hang the test."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self.function, self.args = function, args
        self.value: Any = None
        self.error: BaseException | None = None
        self.ended_at = float("inf")
        self.began_at = monotonic()
        self.start()

    def run(self) -> None:
        try:
            self.value = self.function(*self.args)
        except BaseException as error:
            self.error = error
        self.ended_at = monotonic()

    @property
    def seconds(self) -> float:
        return self.ended_at - self.began_at

    def result(self, within: float) -> Any:
        """Return or raise what the function did; fail if it takes longer than `within` seconds."""
        self.join(within)
        assert not self.is_alive(), f"no answer within {within} s"
        if self.error:
            raise self.error
        return self.value


@contextmanager
def staying(
    work: Callable[[], object],
    threads: int = 1,
    block: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[None]:
    """Threads that have done `work`, each in a `block`, and live on until this one ends."""
    done, over = threading.Semaphore(0), threading.Event()

    def live() -> None:
        with block():
            try:
                work()
            finally:
                done.release()
            over.wait(60)

    calls = [Call(live) for _ in range(threads)]
    try:
        for _ in calls:
            assert done.acquire(timeout=20)
        yield
    finally:
        over.set()
    for call in calls:
        call.result(within=20)


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage is collected only where the test collects it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def repeating(function: Callable[[], object], threads: int) -> Iterator[None]:
    """Call it again and again in so many threads until the block ends; raises what it raises."""
    end = threading.Event()

    def repeat() -> None:
        while not end.wait(0.02):
            function()

    calls = [Call(repeat) for _ in range(threads)]
    try:
        yield
    finally:
        end.set()
        for call in calls:
            call.result(within=20)


def use(pool: AnyPool, query: str = "SELECT 1", timeout: float | None = None) -> int:
    """Check out a connection, query and return it; returns the backend's pid."""
    with pool.connection(timeout) as conn:
        conn.execute(query)
        return pid(conn)


def evict_one_for_each_reason(pool: HardenedPool, server: Server) -> None:
    """Have the pool, of size 1 and on a server of its own, replace four connections."""
    pool.open(wait=True, timeout=20)

    def is_full() -> bool:
        return len(pool.idle) == 1 and not pool.in_use

    pool.drain()  # expired
    wait_until(is_full, "a new connection")
    server.terminate()  # stale
    use(pool)
    conn = pool.getconn()
    conn.execute("SET default_transaction_read_only = on")
    sleep(2 * MISPLACED_LIFE)
    pool.return_unchanged(conn)  # misplaced
    del conn
    wait_until(is_full, "a new connection")
    pool.getconn()  # leaked
    wait_until(is_full, "a new connection")


def give_back(pool: AnyPool, conns: Iterable[Connection[Any]]) -> None:
    for conn in conns:
        pool.putconn(conn)


def pid(conn: Connection[Any]) -> int:
    return conn.info.backend_pid


def open_sockets(server: Server) -> int:
    """The number of TCP connections that this process has open to the server.

    Exact at any moment. The server also counts sessions whose client has already gone.
    """
    return sum(
        bool(found.raddr) and found.raddr.port == server.port
        for found in psutil.Process().net_connections("tcp4")
        if found.status == psutil.CONN_ESTABLISHED
    )


def sockets() -> set[str]:
    """The sockets of any kind that this process has open now."""
    found = set()
    for file in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it has just been closed
            if (target := os.readlink(f"/proc/self/fd/{file}")).startswith("socket:"):
                found.add(target)
    return found
