"""The pool's invariants hold after random steps on a real server, chosen by hypothesis."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic, sleep
from typing import Any, ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from psycopg_pool import PoolTimeout

from abs_orm_app.pool import threads
from abs_orm_app.pool.pool import HardenedPool
from tests.support.bytecodes import Interrupted, interruption
from tests.support.pools import APP, Call, ours, pid
from tests.support.servers import Server, wait_until

TIMEOUT = 3.0
ROOM = 5.0  # seconds that a busy machine may add to a deadline


class PoolMachine(RuleBasedStateMachine):
    """Drives one pool, beside another one that must always serve.

    `held` are the connections that this test has checked out.
    """

    server: ClassVar[Server]

    def __init__(self) -> None:
        super().__init__()
        self.held: list[psycopg.Connection[Any]] = []
        self.up = True
        self.limit = 4
        pool = ours(self.server.conninfo, min_size=2, max_size=4, timeout=TIMEOUT, max_idle=1)
        assert isinstance(pool, HardenedPool)
        self.pool = pool
        self.pool.open(wait=True, timeout=20)
        self.other = self.another()

    def teardown(self) -> None:
        if not self.up:
            self.server.start()
        for conn in self.held:
            self.pool.putconn(conn)
        self.pool.close()
        self.other.close()
        wait_until(lambda: self.server.sessions(APP) == 0, "every session to end")

    def checkout(self, timeout: float) -> psycopg.Connection[Any] | None:
        began = monotonic()
        try:
            return self.pool.getconn(timeout)
        except PoolTimeout:
            return None
        finally:
            assert monotonic() - began <= timeout + ROOM, "a wait past the deadline"

    @rule()
    def take(self) -> None:
        conn = self.checkout(15.0 if self.up and len(self.held) < self.limit else 0.2)
        if conn is None:
            assert not self.up or len(self.held) >= self.limit, (
                "a checkout timed out, and a connection was free"
            )
            return
        assert all(conn is not other for other in self.held), "one connection in two hands"
        self.held.append(conn)
        if self.up:
            conn.execute("SELECT 1")

    # Whether anything is held depends on how fast the machine is: no precondition for hypothesis,
    # which wants the same choice of rules at each repetition.
    @rule(which=st.integers(0, 9), broken=st.booleans())
    def give_back(self, which: int, broken: bool) -> None:
        if not self.held:
            return
        conn = self.held.pop(which % len(self.held))
        if broken:
            conn.close()
        self.pool.putconn(conn)

    @rule(which=st.integers(0, 9))
    def lose(self, which: int) -> None:
        if not self.held:
            return
        self.held.pop(which % len(self.held))
        gc.collect()

    def another(self) -> HardenedPool:
        conninfo = f"{self.server.conninfo} application_name=beside"
        return HardenedPool(conninfo, name="beside", min_size=1, max_size=1, open=True)

    @precondition(lambda self: self.up)
    @rule(dropped=st.booleans())
    def use_the_other_pool(self, dropped: bool) -> None:
        with self.other.connection(20) as conn:
            assert pid(conn)
        if dropped:
            self.other = self.another()

    @precondition(lambda self: self.up)
    @rule()
    def leave_an_iterator_to_the_collector(self) -> None:
        """Of a thread that has ended: its `finally` sends to the server."""

        def rows() -> Iterator[Any]:
            conn = self.checkout(0.2)
            if conn is not None:
                with conn.cursor("rows", withhold=True) as cursor:
                    yield from cursor.execute("SELECT generate_series(1, 50)")

        def begin() -> None:
            iterator = rows()
            cycle: list[Any] = [iterator]
            cycle.append(cycle)
            with suppress(psycopg.Error):
                next(iterator, None)

        Call(begin).result(within=TIMEOUT + ROOM)
        gc.collect()

    @rule(at=st.integers(0, 350))
    def interrupt(self, at: int) -> None:
        """An exception of a signal handler, at a bytecode of a checkout or a return."""
        with suppress(Interrupted, psycopg.Error), interruption(at):
            self.pool.putconn(self.pool.getconn(0.2))

    @precondition(lambda self: self.up)
    @rule()
    def crowd(self) -> None:
        """More clients than connections: each is served, or times out at its deadline."""

        def use() -> None:
            if conn := self.checkout(TIMEOUT):
                sleep(0.005)
                self.pool.putconn(conn)

        allowed = max(self.limit, len(self.held))
        calls = [Call(use) for _ in range(8)]
        while any(call.is_alive() for call in calls):
            assert self.pool.get_stats()["pool_size"] <= allowed
        # Sessions that were replaced take a moment to end.
        self.the_server_counts_no_more_than_the_limit()
        for call in calls:
            call.result(within=TIMEOUT + ROOM)

    @precondition(lambda self: self.up)
    @rule(which=st.integers(0, 9))
    def terminate_one(self, which: int) -> None:
        with self.server.admin() as admin:
            pids = admin.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = %s ORDER BY pid", [APP]
            ).fetchall()
            if pids:
                admin.execute("SELECT pg_terminate_backend(%s, 5000)", pids[which % len(pids)])
        self.replace_broken()

    @rule()
    def expire(self) -> None:
        for conn in tuple(self.pool.idle):
            conn._pool_entry.expire()

    @rule()
    def drain(self) -> None:
        self.pool.drain()

    @rule()
    def check(self) -> None:
        self.pool.check()

    @rule(size=st.integers(0, 3), overflow=st.integers(1, 3))
    def resize(self, size: int, overflow: int) -> None:
        self.pool.resize(size, size + overflow)
        self.limit = size + overflow
        self.the_server_counts_no_more_than_the_limit()

    @precondition(lambda self: self.up)
    @rule(crash=st.booleans())
    def stop(self, crash: bool) -> None:
        self.server.kill() if crash else self.server.stop()
        self.up = False
        self.replace_broken()

    @precondition(lambda self: not self.up)
    @rule()
    def start(self) -> None:
        self.server.start()
        self.up = True

    @rule()
    def rest(self) -> None:
        """Long enough for the next checkout to ping, and for the overflow to be closed."""
        sleep(0.6)

    def replace_broken(self) -> None:
        """Return the held connections that are broken, like a project."""
        for conn in list(self.held):
            try:
                conn.execute("SELECT 1")
            except psycopg.OperationalError:
                self.held.remove(conn)
                self.pool.putconn(conn)

    @invariant()
    def the_server_counts_no_more_than_the_limit(self) -> None:
        if self.up:
            allowed = max(self.limit, len(self.held))
            wait_until(lambda: self.server.sessions(APP) <= allowed, f"at most {allowed} sessions")

    @invariant()
    def every_slot_is_accounted_for(self) -> None:
        # In one condition: an attempt to fill the pool may begin, or end, at any moment, and
        # housekeeping removes the waiter of a checkout that was interrupted as it left.
        def settled() -> bool:
            stats = self.pool.get_stats()
            known = {conn._pool_entry for conn in [*self.pool.idle, *self.held]}
            return (
                self.pool.entries == known
                and not self.pool.core.attempts
                and stats["pool_size"] == stats["pool_available"] + len(self.held)
                and stats["requests_waiting"] == 0
            )

        wait_until(settled, "slots to be idle or in hand")
        stats = self.pool.get_stats()
        assert stats["pool_size"] <= max(self.limit, len(self.held))

    @invariant()
    def no_connection_is_idle_and_in_hand(self) -> None:
        connections = tuple(self.pool.idle)  # others may come meanwhile
        idle = {id(conn) for conn in connections}
        assert len(idle) == len(connections)
        assert not idle & {id(conn) for conn in self.held}
        assert sorted(h.pid for h in self.pool.holders()) == sorted(map(_pid, self.held))


def _pid(conn: psycopg.Connection[Any]) -> int:
    return 0 if conn.closed else pid(conn)


@pytest.mark.timeout(300)
def test_the_invariants_hold_after_each_step(server: Server) -> None:
    PoolMachine.server = server
    before = len(threads.running())
    machine = settings(
        max_examples=12,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    PoolMachine.TestCase.settings = machine
    PoolMachine.TestCase("runTest").runTest()
    # Not those that `threading` counts: up to Python 3.11 it forgets one that has logged only when
    # a later thread gets its number.
    wait_until(lambda: len(threads.running()) <= before, "the pool's threads to end")
