"""Three hosts, of which the primary freezes with requests in flight: the kernel still accepts
connections there, and nothing answers. The pool follows as early as a new connection does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import inf
from threading import Event, Lock
from time import monotonic, sleep

import psycopg
import pytest

from tests.support.pools import APP, AnyPool, Call, opened, ours
from tests.support.replication import Standby
from tests.support.servers import Server, wait_until

LIMIT = 10
HUNG = (6, 9)  # of two pools, the connections with a statement in flight; they have no other one
WRITERS = 12
# The pool may have begun to wait for the frozen host just before the promotion.
PROMOTED_AFTER = 3.0  # seconds
AS_EARLY = 1.0  # seconds after a fresh connection
INSERT = "INSERT INTO written DEFAULT VALUES"


@dataclass
class Trio:
    """A primary, two standbys, and the address that lists the primary first."""

    first: Server
    second: Standby
    third: Standby

    @property
    def conninfo(self) -> str:
        ports = ",".join(str(each.port) for each in (self.first, self.second, self.third))
        return (
            f"host=127.0.0.1,127.0.0.1,127.0.0.1 port={ports} user=postgres dbname=postgres"
            " target_session_attrs=read-write connect_timeout=6"
        )


@dataclass
class Writes:
    """When writes have succeeded (`monotonic`), and the errors of those that have not."""

    good: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def first_after(self, moment: float) -> float:
        with self.lock:
            return min((each for each in self.good if each > moment), default=inf)


@pytest.fixture
def trio() -> Iterator[Trio]:
    with Server() as first, Standby(first) as second, Standby(first) as third:
        with first.admin() as admin:
            admin.execute("CREATE TABLE written (at timestamptz DEFAULT now())")
        yield Trio(first, second, third)


@contextmanager
def writing(pool: AnyPool, writes: Writes) -> Iterator[None]:
    """Threads that write through the pool until the end of the block."""
    end = Event()

    def write() -> None:
        while not end.wait(0.05):
            try:
                with pool.connection() as conn:
                    conn.execute(INSERT)
                with writes.lock:
                    writes.good.append(monotonic())
            except psycopg.Error as error:
                writes.errors.append(f"{type(error).__name__}: {error}")

    threads = [Call(write) for _ in range(WRITERS)]
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join(1)  # those that hang end with the frozen server


@contextmanager
def connecting(conninfo: str, writes: Writes) -> Iterator[None]:
    """A fresh connection each 0.1 s, whatever the others wait for, until the end of the block."""
    end = Event()

    def connect() -> None:
        try:
            with psycopg.connect(conninfo, autocommit=True) as conn:
                conn.execute(INSERT)
            with writes.lock:
                writes.good.append(monotonic())
        except psycopg.Error as error:
            writes.errors.append(f"{type(error).__name__}: {error}")

    def loop() -> None:
        while not end.wait(0.1):
            Call(connect)

    thread = Call(loop)
    try:
        yield
    finally:
        end.set()
        thread.join(5)


def test_the_pool_leaves_a_frozen_primary_as_early_as_a_fresh_connection(trio: Trio) -> None:
    conninfo = trio.conninfo
    fresh, *through_pools = [Writes() for _ in range(1 + len(HUNG))]
    with ExitStack() as stack:
        pools = [
            stack.enter_context(opened(ours, conninfo, min_size=size, max_size=LIMIT, timeout=30))
            for size in HUNG
        ]
        hang(pools, trio.first)
        with ExitStack() as users:
            users.enter_context(connecting(conninfo, fresh))
            for pool, writes in zip(pools, through_pools, strict=True):
                users.enter_context(writing(pool, writes))
            sleep(PROMOTED_AFTER)
            promoted = monotonic()
            trio.second.promote()
            wait_until(
                lambda: all(w.first_after(promoted) < inf for w in (fresh, *through_pools)),
                "all to write",
                40,
            )
        trio.first.kill()  # which ends the statements in flight
    for writes in through_pools:
        late = writes.first_after(promoted) - fresh.first_after(promoted)
        assert late <= AS_EARLY, f"{late:.1f} s after a fresh connection"
        assert not [each for each in writes.errors if each.startswith("PoolTimeout")]


def hang(pools: Sequence[AnyPool], server: Server) -> None:
    """Freeze the server with statements in flight on the connections of the pools."""

    def sleep_there(pool: AnyPool) -> None:
        with pool.connection() as conn:
            conn.execute("SELECT pg_sleep(600)")

    for pool in pools:
        for _ in range(pool.min_size):
            Call(sleep_there, pool)
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        " AND wait_event = 'PgSleep'"
    )
    with server.admin() as admin:
        wait_until(lambda: admin.execute(query, [APP]).fetchone() == (sum(HUNG),), "the statements")
    server.suspend()
