"""Threads of transactions on one pool, and a thread that does everything to it that can happen.

    python -m tests.soak.chaos --seconds 180

It ends with an error if an acknowledged row is lost, a connection is in two hands, a wait lasts
past its deadline, or the pool does not come to rest.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

import psycopg
from psycopg_pool import PoolClosed

from abs_orm_app.pool import registry
from abs_orm_app.pool.pool import HardenedPool
from tests.support.servers import Server

THREADS = 60
TIMEOUT = 5.0
ROOM = 3.0  # seconds that a busy machine may take on top of a deadline
ROLE = "soak"


class Interrupted(BaseException):
    """Thrown into threads."""


class Soak:
    """The pool, who uses it, and what they have seen."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)  # noqa: S311
        self.over = threading.Event()
        self.acknowledged: set[int] = set()
        self.in_hand: set[int] = set()
        self.faults: list[str] = []
        self.done: Counter[str] = Counter()
        self.pool = self.new_pool()
        self.workers = [threading.Thread(target=self.work, args=(n,)) for n in range(THREADS)]

    def new_pool(self) -> HardenedPool:
        conninfo = f"{self.server.conninfo} user={ROLE}"
        return HardenedPool(
            conninfo, min_size=8, max_size=16, timeout=TIMEOUT, name="soak", open=True,
            successor=lambda: self.pool, leak_seconds=60, max_idle=2, max_lifetime=20,
        )  # fmt: skip

    # Who uses it

    def work(self, worker: int) -> None:
        number = worker
        while not self.over.is_set():
            number += THREADS
            try:
                self.transact(number)
            except (psycopg.Error, ValueError, Interrupted):
                self.done["errors"] += 1
            except BaseException as error:
                self.faults.append(f"{type(error).__name__}: {error}")

    def transact(self, number: int) -> None:
        pool, began = self.pool, monotonic()
        try:
            conn = pool.getconn()
        finally:
            if monotonic() - began > TIMEOUT + ROOM:
                self.faults.append(f"a wait of {monotonic() - began:.1f} s")
        pool = conn._pool or pool  # type: ignore[assignment]
        try:
            if id(conn) in self.in_hand:
                self.faults.append("a connection in two hands")
            self.in_hand.add(id(conn))
            conn.execute("INSERT INTO soaked VALUES (%s)", [number])
            conn.commit()
            self.acknowledged.add(number)
            self.done["rows"] += 1
        finally:
            self.in_hand.discard(id(conn))
            pool.putconn(conn)

    # What happens to it

    def disturb(self, seconds: float) -> None:
        end = monotonic() + seconds
        while monotonic() < end:
            disturbance = self.random.choice(self.disturbances())
            with suppress(psycopg.Error, PoolClosed):
                disturbance()
            self.done[disturbance.__name__] += 1
            sleep(self.random.uniform(0.05, 0.4))

    def disturbances(self) -> list[Callable[[], None]]:
        return [
            self.restart, self.terminate, self.suspend, self.suspend_one, self.limit,
            self.crowd_out, self.resize, self.drain, self.check, self.replace, self.fork,
            *[self.throw] * 4,
        ]  # fmt: skip

    def restart(self) -> None:
        self.server.restart(self.random.choice(["fast", "immediate"]))

    def terminate(self) -> None:
        with self.server.admin() as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
                " AND random() < 0.5", [ROLE],
            )  # fmt: skip

    def suspend(self) -> None:
        """Freeze the server for a moment."""
        self.server.suspend()
        try:
            sleep(self.random.uniform(0.1, 1.5))
        finally:
            self.server.resume()

    def suspend_one(self) -> None:
        """Freeze the server process of one connection for longer than a ping takes."""
        holders = self.pool.holders()
        if not holders:
            return
        with suppress(AssertionError):  # it has just ended
            self.server.suspend_backend(holders[0].pid)
        sleep(self.random.uniform(0.1, 3.0))
        self.server.resume()

    def limit(self) -> None:
        with self.server.admin() as admin:
            admin.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT 3")
            sleep(0.5)
            admin.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1")

    def crowd_out(self) -> None:
        """Take all the slots of the server."""
        conns = []
        with suppress(psycopg.Error):
            for _ in range(60):
                conns.append(psycopg.connect(self.server.conninfo, connect_timeout=3))  # noqa: PERF401
        sleep(0.3)
        for conn in conns:
            conn.close()

    def resize(self) -> None:
        size = self.random.randint(1, 8)
        self.pool.resize(size, size + self.random.randint(1, 8))

    def drain(self) -> None:
        self.pool.drain()

    def check(self) -> None:
        self.pool.check()

    def replace(self) -> None:
        closing, self.pool = self.pool, self.new_pool()
        closing.close(timeout=1)

    def fork(self) -> None:
        child = os.fork()
        if child == 0:
            status = 1
            with suppress(BaseException):
                status = int(not self.works_in_child())
            os._exit(status)
        ended, end = 0, monotonic() + TIMEOUT + ROOM + 10
        while not ended and monotonic() < end:
            sleep(0.01)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            self.faults.append("a forked child hangs")
        elif status:
            self.faults.append("a fork failed")

    def works_in_child(self) -> bool:
        """The parent's pool is closed, and a new one serves, if the server is there."""
        gc.collect()
        registry.notice_fork()
        if not self.pool.closed:
            return False
        with suppress(psycopg.OperationalError), self.new_pool().connection() as conn:
            conn.execute("SELECT 1")
        return True

    def throw(self) -> None:
        victim = self.random.choice(self.workers).ident
        if victim is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(victim), ctypes.py_object(Interrupted)
            )

    # The end

    def run(self, seconds: float) -> None:
        for worker in self.workers:
            worker.daemon = True
            worker.start()
        self.disturb(seconds)
        self.over.set()
        for worker in self.workers:
            worker.join(TIMEOUT + ROOM + 10)
            if worker.is_alive():
                self.faults.append("a thread hangs")
        self.rest()
        self.pool.close()

    def rest(self) -> None:
        gc.collect()
        with self.server.admin() as admin:
            rows = {row[0] for row in admin.execute("SELECT n FROM soaked").fetchall()}
        if lost := self.acknowledged - rows:
            self.faults.append(f"{len(lost)} acknowledged rows are lost")
        self.pool.resize(4, 4)
        end = monotonic() + 10
        while (stats := self.pool.get_stats())["pool_available"] != 4 and monotonic() < end:
            sleep(0.05)
        if stats["pool_size"] != 4 or stats["pool_available"] != 4 or stats["requests_waiting"]:
            self.faults.append(f"it does not come to rest: {stats}")


def soak(seconds: float, seed: int) -> Soak:
    """Run it; the caller judges `faults`."""
    settings = {"max_connections": "50"}
    with Server(settings=settings) as server:
        with server.admin() as admin:
            admin.execute(f"CREATE ROLE {ROLE} LOGIN")
            admin.execute("CREATE TABLE soaked (n bigint)")
            admin.execute(f"GRANT ALL ON soaked TO {ROLE}")
        it = Soak(server, seed)
        it.run(seconds)
        return it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))  # noqa: S311
    options: Any = parser.parse_args()
    logging.getLogger("abs_orm_app.pool").setLevel(logging.CRITICAL)
    it = soak(options.seconds, options.seed)
    sys.stdout.write(f"seed {options.seed}: {dict(it.done)}\n")
    for fault in it.faults:
        sys.stdout.write(f"FAULT: {fault}\n")
    sys.exit(bool(it.faults))


if __name__ == "__main__":
    main()
