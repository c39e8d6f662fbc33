"""What happens to a pool: to its server, its network of processes, its settings, its threads.

Each fault takes a moment, is over when its function returns, and runs in the main thread.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic, sleep
from types import FrameType
from typing import Any

import psycopg
from django.db import connections
from psycopg_pool import PoolClosed

from abs_orm_app.pool import registry
from tests.soak.clients import ERRORS, Client
from tests.soak.world import CHILD, DOOMED, ROLE, ROOM, TIMEOUT, World
from tests.support.bytecodes import Interrupted
from tests.support.databases import ALIAS
from tests.support.sessions import POOL
from tests.support.spoiling import PSYCOPG, time_limit

Fault = Callable[[World], None]

# The server


def restart(world: World) -> None:
    world.server.restart(world.random.choice(["fast", "immediate"]))


def terminate(world: World) -> None:
    """End half of the sessions."""
    with world.server.admin() as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
            " AND random() < 0.5", [ROLE],
        )  # fmt: skip


def suspend(world: World) -> None:
    """Freeze the server for a moment."""
    with world.server.suspended():
        sleep(world.random.uniform(0.1, 1.5))


def suspend_backend(world: World) -> None:
    """Freeze the server process of one connection for longer than a ping takes."""
    holders = world.pool.holders()
    if not holders:
        return
    pid = holders[0].pid
    world.frozen.add(pid)
    with suppress(AssertionError):  # it has just ended
        world.server.suspend_backend(pid)
    sleep(world.random.uniform(0.1, 3.0))
    world.server.resume()
    world.frozen.discard(pid)


def limit_role(world: World) -> None:
    with world.server.admin() as admin:
        admin.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT 3")
        sleep(0.5)
        admin.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1")


def crowd_out(world: World) -> None:
    """Take all the slots of the server."""
    conns = []
    with suppress(psycopg.Error):
        for _ in range(70):
            conns.append(psycopg.connect(world.server.conninfo, connect_timeout=3))  # noqa: PERF401
    sleep(0.3)
    for conn in conns:
        conn.close()


def change_password(world: World) -> None:
    """The server has the new one first; the file follows."""
    password = f"p{next(world.passwords)}"
    with world.server.admin() as admin:
        admin.execute(f"ALTER ROLE {ROLE} PASSWORD '{password}'")
        if world.random.random() < 0.5:
            sleep(world.random.uniform(0.0, 0.5))
        world.password.with_suffix(".new").write_text(password)
        world.password.with_suffix(".new").replace(world.password)


def drop_database(world: World) -> None:
    with world.server.admin() as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {DOOMED} WITH (FORCE)")
        sleep(world.random.uniform(0.0, 0.3))
        admin.execute(f"CREATE DATABASE {DOOMED}")


# The pool's owner


def resize(world: World) -> None:
    size = world.random.randint(1, 8)
    world.pool.resize(size, size + world.random.randint(1, 8))


def drain(world: World) -> None:
    world.pool.drain()


def check(world: World) -> None:
    world.pool.check()


def replace(world: World) -> None:
    world.replace()


# The process


def fork(world: World) -> None:
    world.children += 1
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException):
            status = int(not _works_in_child(world))
        os._exit(status)
    ended, end = 0, monotonic() + TIMEOUT + ROOM + 10
    while not ended and monotonic() < end:
        sleep(0.01)
        ended, status = os.waitpid(child, os.WNOHANG)
    world.children -= 1
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        world.sums.violation("a forked child hangs")
    elif status:
        world.sums.violation("a fork failed", status)


def _works_in_child(world: World) -> bool:
    """The parent's pool is closed, and a new one serves, if the server is there."""
    gc.collect()
    registry.notice_fork()
    world.over.set()
    with suppress(*ERRORS):
        if world.mode == POOL:
            if not world.pool.closed:
                return False
            with psycopg.connect(world.server.conninfo, user=CHILD, password="p0") as conn:
                conn.execute("SELECT 1")
        else:
            connections.databases[ALIAS]["USER"] = CHILD
            with connections[ALIAS].cursor() as cursor:
                cursor.execute("SELECT 1")
    return True


def throw(world: World) -> None:
    """An exception in a thread, as Dramatiq's time limits are thrown."""
    victim = world.random.choice(world.threads).ident
    if victim is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(victim), ctypes.py_object(Interrupted)
        )


# Signals, which only the main thread gets


def interrupt_statement(world: World) -> None:
    """A time limit ends a few long statements; the server must not go on with them."""
    for _ in range(3):
        with suppress(*ERRORS), world.in_time():
            session = world.begin()
            try:
                with time_limit(world.random.uniform(0.01, 0.1)), session.cursor() as cursor:
                    cursor.execute("SELECT pg_sleep(30)")
            finally:
                session.end()


def interrupt_request(world: World) -> None:
    """A time limit ends a request, wherever it is."""
    with suppress(*ERRORS), time_limit(world.random.uniform(0.0, 0.02)):
        Client(world, 1000).request()


def query_in_a_handler(world: World) -> None:
    """A signal handler queries, wherever the request of its thread is.

    Not within psycopg: it has a lock that its own thread would wait for, with any pool.
    """
    client, other = Client(world, 1001), Client(world, 1002)

    def handle(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename.startswith(PSYCOPG):
                return
            frame = frame.f_back
        with suppress(*ERRORS):
            other.ask_in_a_handler()
        world.sums.done["queries of a signal handler"] += 1

    before = signal.signal(signal.SIGALRM, handle)
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, world.random.uniform(1e-6, 0.01))
            client.request()
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


OFTEN, SELDOM = 4, 1
FAULTS: dict[Fault, int] = {
    restart: SELDOM, terminate: SELDOM, suspend: SELDOM, suspend_backend: SELDOM,
    limit_role: SELDOM, crowd_out: SELDOM, change_password: SELDOM, drop_database: SELDOM,
    resize: SELDOM, drain: SELDOM, check: SELDOM, replace: SELDOM, fork: SELDOM,
    throw: OFTEN, interrupt_statement: OFTEN, interrupt_request: OFTEN, query_in_a_handler: OFTEN,
}  # fmt: skip


def disturb(
    world: World, faults: Mapping[Fault, int], seconds: float, feed: Callable[[], Any]
) -> None:
    """Let one of these after the other happen; `feed` the watchdog after each."""
    end = monotonic() + seconds
    while monotonic() < end:
        (fault,) = world.random.choices([*faults], [*faults.values()])
        try:
            fault(world)
        except (psycopg.Error, PoolClosed, *ERRORS):
            world.sums.done[f"fault failed: {fault.__name__}"] += 1
        world.sums.done[f"fault: {fault.__name__}"] += 1
        feed()
        sleep(world.random.uniform(0.02, 0.3))
