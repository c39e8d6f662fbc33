"""Tasks on the pool in whole processes: a fork, the end, uvloop, TLS, and PgBouncer in front."""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from abs_orm_app import aio
from tests.aio.test_connection import first, run
from tests.support.databases import Database
from tests.support.debian import DebianServer, make_certificate, needs_debian
from tests.support.pgbouncers import PgBouncer, needs_pgbouncer
from tests.support.processes import UVICORN, backend, backends, web_server
from tests.support.processes import run as run_process
from tests.support.servers import Server, wait_until
from tests.support.system import needs_openssl

pytestmark = pytest.mark.server({"log_min_messages": "debug1"})

NOT_CLOSED = "unexpected EOF"
DEVELOPMENT = ("-X", "dev", "-W", "error")


async def ask(sql: str = "SELECT pg_backend_pid()") -> Any:
    async with aio.connection() as conn:
        row = await (await conn.execute(sql)).fetchone()
        return row and row[0]


# Functions that run in a process of their own


def fork_while_a_task_holds_a_connection(kind: str) -> None:
    fork = os.fork if kind == "fork" else ctypes.PyDLL(None).fork  # C: no hook of Python runs

    async def hold() -> None:
        async with aio.connection() as conn:
            mine = conn.info.backend_pid
            child = fork()
            if child == 0:  # its loop is its parent's: it starts one in a thread
                answers: list[int] = []
                thread = threading.Thread(target=lambda: answers.append(asyncio.run(ask())))
                thread.start()
                thread.join(20)
                os._exit(0 if answers and answers != [mine] else 1)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert await (await conn.execute("SELECT pg_backend_pid()")).fetchone() == (mine,)
        assert await ask() == mine

    asyncio.run(hold())


def end_with_tasks_that_hold() -> None:
    async def hold() -> None:
        async with aio.connection() as conn:
            await conn.execute("BEGIN")
            await asyncio.sleep(60)

    async def main() -> None:
        tasks = [asyncio.create_task(hold()) for _ in range(3)]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in tasks)

    asyncio.run(main())


def end_with_a_loop_that_was_never_closed() -> None:
    async def hold() -> None:
        async with aio.connection() as conn:
            await conn.execute("BEGIN")
            await asyncio.sleep(60)

    loop = asyncio.new_event_loop()
    task = loop.create_task(hold())
    loop.call_later(0.3, loop.stop)
    loop.run_forever()
    sys.modules["kept"] = task  # type: ignore[assignment]


def share_with_uvloop() -> None:
    uvloop = importlib.import_module("uvloop")
    mine = backend()
    connection.close()
    pool: Any = connection.pool  # type: ignore[attr-defined]

    async def one(n: int) -> None:
        async with aio.connection() as conn:
            cursor = await conn.execute("SELECT %s::int FROM pg_sleep(0.002)", [n])
            assert await cursor.fetchone() == (n,)

    async def many() -> None:
        assert await ask() == mine
        tasks = [asyncio.create_task(one(n)) for n in range(300)]
        for n, task in enumerate(tasks):
            if n % 3 == 0:
                asyncio.get_running_loop().call_later(n / 3000, task.cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        wrong = [each for each in results if each and type(each) is not asyncio.CancelledError]
        assert not wrong
        for entry in pool.entries:
            entry.suspect()
        assert await ask()

    uvloop.run(many())
    wait_until(lambda: len(pool.idle) == len(pool.entries), "all connections to be idle")


# Tests


@pytest.mark.parametrize("kind", ["fork", "fork in C"])
def test_a_fork_keeps_the_connection_of_the_parents_task(server: Server, kind: str) -> None:
    result = run_process(server, fork_while_a_task_holds_a_connection, kind, DB_POOL_SIZE="1")
    assert result.status == 0, result
    wait_until(lambda: not backends(server), "the sessions to end")


@pytest.mark.parametrize(
    "function", [end_with_tasks_that_hold, end_with_a_loop_that_was_never_closed]
)
def test_a_process_with_tasks_ends_at_once_and_closes_its_sessions(
    server: Server, function: Any
) -> None:
    options = DEVELOPMENT if function is end_with_tasks_that_hold else ()
    result = run_process(server, function, options=options, DB_POOL_SIZE="4")
    assert result.status == 0, result
    wait_until(lambda: not backends(server), "the sessions to end")
    if function is end_with_tasks_that_hold:
        assert NOT_CLOSED not in server.log


def test_uvloop_serves_tasks_from_the_same_pool(server: Server) -> None:
    pytest.importorskip("uvloop")
    result = run_process(server, share_with_uvloop, DB_POOL_SIZE="1", DB_MAX_OVERFLOW="3")
    assert result.status == 0, result


@needs_debian
@needs_openssl
def test_a_task_over_tls(database: Database, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory: Path = tmp_path_factory.mktemp("certificates")
    make_certificate(directory, "localhost")
    with DebianServer(certificate=directory) as server:
        database.server = server
        wrapper = database(
            HOST="localhost",
            OPTIONS={"sslmode": "verify-full", "sslrootcert": str(directory / "ca.crt")},
        )

        async def use() -> None:
            assert await first("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            rows = (
                "SELECT count(x) FROM (SELECT repeat('x', 1000) x FROM generate_series(1, 5000)) y"
            )
            for entry in wrapper.pool.entries:
                entry.suspect()
            assert await asyncio.gather(*(first(rows) for _ in range(8))) == [5000] * 8

        run(use())


@needs_pgbouncer
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_pgbouncer_in_front(database: Database, shared: Server, pool_mode: str) -> None:
    with PgBouncer(shared, pool_mode=pool_mode, default_pool_size=2) as pooler:
        options = {"pool": {"min_size": 1, "max_size": 2, "timeout": 20}}
        wrapper = database(HOST=str(pooler.directory), PORT=str(pooler.port), OPTIONS=options)

        async def use() -> None:
            assert await asyncio.gather(*(first("SELECT %s::int", n) for n in range(20)))
            task = asyncio.create_task(first("SELECT pg_sleep(20)"))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await first("SELECT 1") == 1

        run(use())
        pool = wrapper.pool
        wait_until(lambda: len(pool.idle) == len(pool.entries), "all connections to be idle")


LISTENING = "SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN events' AND state = 'idle'"
CLIENTS = 20


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_one_connection_listens_for_all_clients_of_a_process(server: Server, loop: str) -> None:
    """The recipe of docs/async.md, under uvicorn."""
    pytest.importorskip(loop)

    async def read(socket: str, ready: asyncio.Semaphore) -> str:
        reader, writer = await asyncio.open_unix_connection(socket)
        writer.write(b"GET /events/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"retry: 1000")
        ready.release()
        await reader.readuntil(b"data: ")
        text = (await reader.readline()).decode().strip()
        writer.close()
        return text

    async def all_read(socket: str) -> list[str]:
        ready = asyncio.Semaphore(0)
        clients = [asyncio.create_task(read(socket, ready)) for _ in range(CLIENTS)]
        for _ in clients:
            await ready.acquire()
        await asyncio.to_thread(wait_until, lambda: listening() == 1, "the listener")
        with server.admin() as admin:
            admin.execute("NOTIFY events, 'news'")
        return await asyncio.gather(*clients)

    def listening() -> int:
        with server.admin() as admin:
            row = admin.execute(LISTENING).fetchone()
            return int(row[0]) if row else 0

    command = (*UVICORN[:1], f"--loop={loop}", *UVICORN[1:])
    with web_server(command, server, DB_POOL_SIZE="2", DB_MAX_OVERFLOW="0") as web:
        for _ in range(2):
            assert asyncio.run(asyncio.wait_for(all_read(web.socket), 60)) == ["news"] * CLIENTS
            wait_until(lambda: listening() == 0, "the listener to end")
        assert len(web.get(["/"] * 4)) == 4
