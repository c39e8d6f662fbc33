"""Async tasks on a pool: ours, psycopg_pool's, asyncpg's and SQLAlchemy's.

Each turn is a process of its own with a server of its own: `python -m benchmarks.tasks PEER LOOP`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import inf
from time import monotonic, process_time
from typing import Any

from benchmarks.figure import Effort, Figure, column, duration, hundredths, whole
from benchmarks.peers import Peer
from tests.support.servers import Server

SIZE, LIMIT = 20, 30
TASKS, SECONDS = 200, 1.5
CHECKOUTS = 1000
CANCELLED = 10_000
LOOPS = 20
TIMEOUT = 60.0
PATIENCE = 5.0  # seconds after which a client that still waits is given up
DEADLINE = 240.0  # for a process

Acquire = Callable[..., Any]  # an async context manager, which yields `ask(sql)`


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Acquire]:
    import django
    from django.db import connections

    os.environ |= {
        "BENCH_PEER": "ours",
        "DATABASE_URL": url,
        "DB_POOL_SIZE": str(SIZE),
        "DB_MAX_OVERFLOW": str(LIMIT - SIZE),
        "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
    }
    django.setup()
    from abs_orm_app import aio

    @asynccontextmanager
    async def acquire(timeout: float = TIMEOUT) -> AsyncIterator[Any]:
        async with aio.connection(timeout=timeout) as conn:
            yield _of_psycopg(conn)

    yield acquire
    wrapper: Any = connections["default"]
    wrapper.close_pool()


def _of_psycopg(conn: Any) -> Any:
    async def ask(sql: str) -> Any:
        row = await (await conn.execute(sql)).fetchone()
        return row and row[0]

    return ask


@asynccontextmanager
async def psycopg_pool(url: str) -> AsyncIterator[Acquire]:
    from psycopg_pool import AsyncConnectionPool

    check = AsyncConnectionPool.check_connection
    options: Any = {"min_size": SIZE, "max_size": LIMIT, "check": check, "open": False}
    pool = AsyncConnectionPool(url, kwargs={"autocommit": True}, **options)
    await pool.open()

    @asynccontextmanager
    async def acquire(timeout: float = TIMEOUT) -> AsyncIterator[Any]:
        async with pool.connection(timeout) as conn:
            yield _of_psycopg(conn)

    yield acquire
    with suppress(Exception):
        await asyncio.wait_for(pool.close(0.1), PATIENCE)


@asynccontextmanager
async def asyncpg(url: str) -> AsyncIterator[Acquire]:
    import asyncpg as driver

    pool = await driver.create_pool(url, min_size=SIZE, max_size=LIMIT)

    @asynccontextmanager
    async def acquire(timeout: float = TIMEOUT) -> AsyncIterator[Any]:
        async with pool.acquire(timeout=timeout) as conn:
            yield conn.fetchval

    yield acquire
    pool.terminate()


@asynccontextmanager
async def _sqlalchemy(url: str, driver: str) -> AsyncIterator[Acquire]:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(
        url.replace("postgresql:", f"postgresql+{driver}:", 1),
        pool_size=SIZE,
        max_overflow=LIMIT - SIZE,
        pool_timeout=TIMEOUT,
        pool_pre_ping=True,
        isolation_level="AUTOCOMMIT",
    )

    @asynccontextmanager
    async def acquire(timeout: float = TIMEOUT) -> AsyncIterator[Any]:
        assert timeout  # the engine's counts
        async with engine.connect() as conn:
            await conn.get_raw_connection()

            async def ask(sql: str) -> Any:
                return (await conn.execute(text(sql))).scalar()

            yield ask

    yield acquire
    with suppress(Exception):
        await asyncio.wait_for(engine.dispose(), PATIENCE)


PEERS: dict[str, Callable[[str], Any]] = {
    "ours": ours,
    "psycopg_pool": psycopg_pool,
    "asyncpg": asyncpg,
    "SQLAlchemy, asyncpg": lambda url: _sqlalchemy(url, "asyncpg"),
    "SQLAlchemy, psycopg": lambda url: _sqlalchemy(url, "psycopg"),
}


@dataclass(frozen=True)
class Tasks:
    """`lost`: wrong answers, connections that cannot be used any more, and swallowed cancels."""

    peer: str = column("")
    checkout: float = column("checkout and return, processor", duration)
    query: float = column("200 tasks: processor per query", duration)
    fairness: float = column("fairness", hundredths)
    restart_one: float = column("restart, 1 client: served", duration)
    restart: float = column("restart, 8 clients: all served", duration)
    errors: int = column("errors", whole)
    frozen: float = column("stopped server, timeout 2 s", duration)
    lost: int = column("10,000 tasks, 80 % cancelled: lost", whole)
    left: int = column("60 clients gone: queries 1 s later", whole)
    loops: int = column("of 20 loops, served", whole)


async def checkout(acquire: Acquire) -> float:
    async def some(count: int) -> None:
        for _ in range(count):
            async with acquire():
                pass

    await some(100)
    await asyncio.sleep(1.0)  # until the pool is filled
    began = process_time()
    await some(CHECKOUTS)
    return (process_time() - began) / CHECKOUTS


async def load(acquire: Acquire) -> tuple[float, float]:
    done = [0] * TASKS
    until = monotonic() + SECONDS

    async def work(number: int) -> None:
        while monotonic() < until:
            async with acquire() as ask:
                await ask("SELECT pg_sleep(0.005)")
            done[number] += 1

    began = process_time()
    await asyncio.gather(*(work(number) for number in range(TASKS)))
    return (process_time() - began) / sum(done), min(done) / statistics.mean(done)


async def restart(acquire: Acquire, server: Server, clients: int) -> tuple[float, int]:
    errors = 0

    async def client() -> None:
        nonlocal errors
        while True:
            try:
                async with acquire() as ask:
                    await ask("SELECT 1")
            except Exception:
                errors += 1
                await asyncio.sleep(0.01)
            else:
                return

    await asyncio.sleep(1.0)  # until the pool is filled
    server.restart()
    began = monotonic()
    try:
        await asyncio.wait_for(asyncio.gather(*(client() for _ in range(clients))), 2 * PATIENCE)
    except TimeoutError:
        return inf, errors
    return monotonic() - began, errors


async def cancelled(acquire: Acquire) -> int:
    chance = random.Random(1)  # noqa: S311

    async def one(number: int) -> bool:
        async with acquire() as ask:
            return bool(await ask(f"SELECT {number} FROM pg_sleep(0.001)") == number)

    tasks = [asyncio.create_task(one(number)) for number in range(CANCELLED)]
    told: set[asyncio.Task[bool]] = set()

    def cancel(task: asyncio.Task[bool]) -> None:
        if task.cancel():
            told.add(task)

    for task in tasks:
        if chance.random() < 0.8:
            asyncio.get_running_loop().call_later(chance.random() * 2.5, cancel, task)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    wrong = sum(
        each is not True and not isinstance(each, asyncio.CancelledError) for each in results
    )
    swallowed = sum(not task.cancelled() for task in told)
    holding = asyncio.Semaphore(0)
    end = asyncio.Event()

    async def hold() -> None:
        async with acquire():
            holding.release()
            await end.wait()

    holders = [asyncio.create_task(hold()) for _ in range(LIMIT)]
    held = 0
    with suppress(TimeoutError):
        while held < LIMIT:
            await asyncio.wait_for(holding.acquire(), PATIENCE)
            held += 1
    end.set()
    await asyncio.wait(holders, timeout=PATIENCE)
    return wrong + swallowed + LIMIT - held


async def left(acquire: Acquire, server: Server) -> int:
    async def client() -> None:
        async with acquire() as ask:
            await ask("SELECT pg_sleep(3)")

    clients = [asyncio.create_task(client()) for _ in range(60)]
    await asyncio.sleep(0.5)
    for each in clients:
        each.cancel()
    await asyncio.sleep(1.0)
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ 'sleep.3'"
    with server.admin() as admin:
        row = admin.execute(f"{running} AND pid <> pg_backend_pid()").fetchone()
    await asyncio.wait(clients, timeout=PATIENCE)
    return int(row[0]) if row else 0


async def frozen(acquire: Acquire, server: Server) -> float:
    async def client() -> None:
        async with acquire(timeout=2.0) as ask:
            await ask("SELECT 1")

    async with acquire() as ask:
        await ask("SELECT 1")
    await asyncio.sleep(1.0)  # so that it is idle for long enough to be pinged
    server.suspend()
    began = monotonic()
    task = asyncio.create_task(client())
    done, _ = await asyncio.wait([task], timeout=PATIENCE)
    seconds = monotonic() - began
    server.resume()
    task.cancel()
    await asyncio.wait([task], timeout=PATIENCE)
    return seconds if done and not task.cancelled() and task.exception() else inf


async def loops(acquire: Acquire) -> int:
    """How many of LOOPS, one after another, have all their tasks served by a pool of another."""
    make_loop = type(asyncio.get_running_loop())
    served = 0

    async def one() -> None:
        async with acquire() as ask:
            await ask("SELECT pg_sleep(0.005)")

    async def every() -> None:
        await asyncio.wait_for(asyncio.gather(*(one() for _ in range(2 * LIMIT))), 1.0)

    def run() -> None:
        nonlocal served
        for _ in range(LOOPS):
            with suppress(Exception), asyncio.Runner(loop_factory=make_loop) as runner:
                runner.run(every())
                served += 1

    thread = threading.Thread(target=run, daemon=True)  # which may hang
    thread.start()
    until = monotonic() + 2 * LOOPS
    while thread.is_alive() and monotonic() < until:
        await asyncio.sleep(0.01)
    return served


async def turn(name: str, server: Server) -> None:
    async with PEERS[name](server.tcp_url) as acquire:
        used = await checkout(acquire)
        query, fairness = await load(acquire)
        lost = await cancelled(acquire)
        running = await left(acquire, server)
        one, errors_of_one = await restart(acquire, server, 1)
        eight, errors = await restart(acquire, server, 8)
        stopped = await frozen(acquire, server)
    errors += errors_of_one
    row = Tasks(name, used, query, fairness, one, eight, errors, stopped, lost, running, 0)
    _tell(row)  # asyncpg may crash when another loop uses its pool
    async with PEERS[name](server.tcp_url) as acquire:
        _tell(replace(row, loops=await loops(acquire)))


def _tell(row: Tasks) -> None:
    print(json.dumps(vars(row)), flush=True)


def tasks(_peers: Sequence[Peer], effort: Effort) -> Figure:
    """Each peer in turns; of each figure the median, and the worst of what must not happen."""
    needed = {"asyncpg": ("asyncpg",), "SQLAlchemy, asyncpg": ("asyncpg", "sqlalchemy")}
    needed["SQLAlchemy, psycopg"] = ("sqlalchemy",)
    names = [name for name in PEERS if all(map(find_spec, needed.get(name, ())))]
    turns: dict[str, list[Tasks]] = {name: [] for name in names}
    for _ in range(min(2, effort.few_rounds)):
        for name in names:
            turns[name].append(_in_a_process(name))
    return Figure(
        "Async tasks on 30 connections",
        "Each peer checks connections before it hands them out, except asyncpg, which does not."
        " 200 tasks run queries of 5 ms; 1 client and 8 query after a restart; the server is"
        " stopped under a client with a timeout of 2 s; of 10,000 tasks 80 % are cancelled at"
        " random, and wrong answers, unusable connections and swallowed cancels are counted; 60"
        " clients of a query of 3 s go away; 20 loops, one after another, use another loop's pool.",
        [_row(each) for each in turns.values()],
    )


def _row(turns: Sequence[Tasks]) -> Tasks:
    best = {
        name: statistics.median(float(getattr(each, name)) for each in turns)
        for name in ("checkout", "query", "fairness", "restart_one", "restart", "frozen", "loops")
    }
    worst = {name: max(int(getattr(each, name)) for each in turns) for name in _COUNTS}
    return Tasks(peer=turns[0].peer, **best, **worst)  # type: ignore[arg-type]


_COUNTS = ("errors", "lost", "left")


def _in_a_process(name: str) -> Tasks:
    command = [sys.executable, "-m", "benchmarks.tasks", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=DEADLINE, check=False)
    if not done.stdout:
        done.check_returncode()
    return Tasks(**json.loads(done.stdout.splitlines()[-1]))


async def _bounded(work: Awaitable[None]) -> None:
    await asyncio.wait_for(work, DEADLINE - 10)


if __name__ == "__main__":
    with Server({"max_connections": "100"}) as _server:
        if sys.argv[2:] == ["uvloop"]:
            import uvloop

            uvloop.run(_bounded(turn(sys.argv[1], _server)))
        else:
            asyncio.run(_bounded(turn(sys.argv[1], _server)))
    os._exit(0)  # threads of a peer may still wait for the server that was stopped
