"""The server, its pool in one mode, who uses it, and what they have seen."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from weakref import ref

import psycopg
from django.db import connections

from abs_orm_app.pool.pool import HardenedPool
from tests.soak.script import Sums
from tests.support.databases import ALIAS, Database
from tests.support.pools import APP, hooks_with
from tests.support.servers import Server, wait_until
from tests.support.sessions import POOL, EngineSession, PoolSession, Session

ROLE, CHILD = "soak", "soak_child"  # of the pool, and of a forked child
TENANTS = [f"tenant_{n}" for n in range(8)]
DOOMED = "doomed"  # a database that is dropped, and its alias
SIZE, LIMIT = 8, 16
TIMEOUT = 5.0  # seconds to wait for a connection
ROOM = 10.0  # seconds that a busy machine, or a frozen backend, may take on top of a deadline
EXCESS = 4.0  # seconds; a session lives a moment longer than its connection
LOOK = 0.02  # seconds between two looks at the server's sessions

HBA = """
local all postgres trust
local all all scram-sha-256
"""
SERVER: dict[str, Any] = {
    "settings": {"max_connections": "60"},
    "hba": HBA,
    "roles": [
        f"{ROLE} LOGIN PASSWORD 'p0'",
        f"{CHILD} LOGIN PASSWORD 'p0'",
        *(f"{tenant} ROLE {ROLE}" for tenant in TENANTS),
    ],
    "sql": [
        "CREATE TABLE soaked (n bigint)",
        f"GRANT ALL ON soaked TO {', '.join([ROLE, CHILD, *TENANTS])}",
        f"CREATE DATABASE {DOOMED}",
    ],
}


class World:
    """One run in one mode: POOL, or a value of DB_POOL_RELEASE."""

    def __init__(self, server: Server, mode: str, seed: int) -> None:
        self.server, self.mode = server, mode
        self.random = random.Random(seed)  # noqa: S311
        self.sums = Sums()
        self.over = threading.Event()
        self.numbers = count()
        self.acknowledged: set[int] = set()
        self.holding: dict[int, int] = {}  # by thread: the backend of its transaction
        self.threads: list[threading.Thread] = []
        self.children = 0  # forks that live now
        self.frozen: set[int] = set()  # backends that are suspended
        self.passwords = count(1)
        self.password = server.socket_dir / "password"
        self.password.write_text("p0")
        self._former: list[ref[HardenedPool]] = []
        self._pool = self._doomed = None
        if mode == POOL:
            self._pool, self._doomed = self._new_pool(), self._new_pool(dbname=DOOMED, max_size=2)
        else:
            self._database = Database(server, mode)
            self._add_alias(ALIAS)
            self._add_alias(DOOMED, NAME=DOOMED, size=1)

    def _add_alias(self, alias: str, size: int = SIZE, **changes: Any) -> None:
        pool = {"min_size": size, "max_size": 2 * size, "timeout": TIMEOUT, "max_lifetime": 20}
        self._database(
            alias,
            USER=ROLE,
            OPTIONS={"pool": {**pool, "max_idle": 2}, "application_name": APP},
            ABS_ORM_APP={"password_file": str(self.password), "leak_seconds": 60},
            **changes,
        )

    def _new_pool(self, dbname: str = "postgres", max_size: int = LIMIT) -> HardenedPool:
        def conninfo() -> str:
            password = Path(self.password).read_text()
            return f"{self.server.conninfo} user={ROLE} dbname={dbname} password={password}"

        kwargs = {"autocommit": True, "application_name": APP}
        return HardenedPool(
            conninfo, kwargs={**kwargs, "prepare_threshold": None},  # DISCARD ALL forgets them
            min_size=max_size // 2, max_size=max_size, timeout=TIMEOUT, name=f"soak {dbname}",
            hooks=hooks_with(
                successor=lambda: self._doomed if dbname == DOOMED else self._pool, rotating=True
            ),
            reset=_discard_all,
            leak_seconds=60, max_idle=2, max_lifetime=20, open=True,
        )  # fmt: skip

    # For those who use it

    @property
    def pool(self) -> HardenedPool:
        """The pool of now."""
        wrapper: Any = connections[ALIAS] if self._pool is None else None
        pool: HardenedPool = self._pool or wrapper.pool
        return pool

    def begin(self) -> Session:
        """A request begins; a wait past its deadline is a violation."""
        if self._pool is None:
            return EngineSession()
        with self.in_time():
            return PoolSession(self._pool)

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """For what waits for a connection, at most."""
        began = monotonic()
        try:
            yield
        finally:
            if (waited := monotonic() - began) > TIMEOUT + ROOM:
                self.sums.violation("a wait past its deadline", f"{waited:.1f} s")

    def visit_doomed(self) -> None:
        """Query the database that is dropped now and then."""
        if self._doomed is not None:
            with self._doomed.connection() as conn:
                conn.execute("SELECT 1")
            return
        with connections[DOOMED].cursor() as cursor:
            cursor.execute("SELECT 1")

    def replace(self) -> None:
        """Close the pool while it is used; a new one takes its place."""
        if self._pool is not None:
            closing, self._pool = self._pool, self._new_pool()
            self._former.append(ref(closing))
            closing.close(timeout=1)
        else:
            self._former.append(ref(self.pool))
            wrapper: Any = connections[ALIAS]
            wrapper.close_pool()

    def limit(self) -> int:
        """How many sessions there may be: closed pools have some until these are returned."""
        former = [pool for each in self._former if (pool := each()) is not None and pool.entries]
        return self.pool.max_size + LIMIT * len(former)

    # The end

    def rest(self) -> None:
        """Wait until nobody uses it; account for the rows."""
        with self.server.admin() as admin:
            rows = {n for (n,) in admin.execute("SELECT n FROM soaked").fetchall()}
            exists = admin.execute("SELECT FROM pg_database WHERE datname = %s", [DOOMED])
            if exists.fetchone() is None:
                admin.execute(f"CREATE DATABASE {DOOMED}")
        self.sums.done["rows acknowledged"] = len(self.acknowledged)
        if lost := self.acknowledged - rows:
            self.sums.violation("acknowledged rows are lost", sorted(lost)[:20])
            self.sums.violations["acknowledged rows are lost"] = len(lost)
        try:
            self.visit_doomed()
        except Exception as error:
            self.sums.violation("the database that is back cannot be used", repr(error))
        self._come_to_rest()
        self.sums.done.update(
            {f"pool: {name}": value for name, value in self.pool.get_stats().items()}
        )

    def _come_to_rest(self) -> None:
        for wrapper in connections.all(initialized_only=True):
            wrapper.close()
        pool = self.pool
        pool.open()
        pool.resize(4, 4)

        def rests() -> bool:
            stats = pool.get_stats()
            return stats["pool_size"] == stats["pool_available"] == 4 and not (
                pool.in_use or stats["requests_waiting"]
            )

        with suppress(TimeoutError):
            wait_until(rests, "the pool to be at rest")
        if not rests():
            self.sums.violation("it does not come to rest", [pool.get_stats(), pool.holders()])

    def close(self) -> None:
        if self._pool is not None and self._doomed is not None:
            self._pool.close()
            self._doomed.close()
        else:
            self._database.remove()


def _discard_all(conn: psycopg.Connection[Any]) -> None:
    conn.execute("DISCARD ALL", prepare=False)


class Watch(threading.Thread):
    """Counts the pool's sessions as the server does, all the time.

    More than the limit for a moment are those that have just been closed.
    """

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.world = world
        self.most = 0

    def run(self) -> None:
        while not self.world.over.is_set():
            with (
                suppress(psycopg.Error),
                psycopg.connect(
                    self.world.server.conninfo, autocommit=True, application_name="admin"
                ) as admin,
            ):
                self._look(admin)
            sleep(LOOK)  # the server is down

    def _look(self, admin: psycopg.Connection[Any]) -> None:
        since = monotonic()  # when there were not too many
        while not self.world.over.wait(LOOK):
            asked = monotonic()
            rows = admin.execute(
                "SELECT pid, state, query FROM pg_stat_activity"
                " WHERE usename = %s AND datname = 'postgres'", [ROLE],
            ).fetchall()  # fmt: skip
            found = [row for row in rows if row[0] not in self.world.frozen]
            self.most = max(self.most, len(found))
            now = monotonic()
            if len(found) <= self.world.limit() or now - asked > LOOK * 10:
                since = now
            elif now - since > EXCESS:
                running = [row for row in found if row[1] == "active"]
                self.world.sums.violation(
                    "more sessions than the limit",
                    f"{len(found)} for {now - since:.1f} s; running: {running[:3]}",
                )
                since = now
