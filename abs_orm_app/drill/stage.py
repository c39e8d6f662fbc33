"""The stage on which promises are tested: a pool, and a connection that counts its sessions."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread
from time import monotonic, perf_counter, sleep
from typing import Any, Literal

import psycopg
from psycopg_pool import ConnectionPool

from abs_orm_app.facts.connecting import return_unchanged
from abs_orm_app.facts.databases import Configured
from abs_orm_app.pool.entry import AnyConnection
from abs_orm_app.pool.messages import first_line
from abs_orm_app.pool.pool import HardenedPool

AnyPool = HardenedPool | ConnectionPool[Any]
Result = Literal["kept", "broken", "skipped"]

STEP_TIMEOUT = 5.0  # seconds to wait for something that should be immediate
THREAD = "drill"  # the threads that check out are "drill 1", "drill 2" ...


@dataclass(frozen=True)
class Seen:
    result: Result
    what: str


@dataclass(frozen=True, kw_only=True)
class Control:
    """A connection that queries and ends the sessions of the drill's pools."""

    connection: AnyConnection
    application_name: str  # of those sessions only
    connect_seconds: float  # to open a connection
    free: int | None  # connections that the server had left for this role; None: unknown

    def sessions(self) -> int:
        return self._ask("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s")

    def terminate(self) -> int:
        """Make the server end these sessions; return how many."""
        return self._ask(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = %s"
        )

    def _ask(self, query: str) -> int:
        rows: list[tuple[int]] = self.connection.execute(query, [self.application_name]).fetchall()
        return rows[0][0]


@dataclass(frozen=True, kw_only=True)
class CheckedOut:
    """The result of one checkout and one query."""

    conn: AnyConnection | None
    error: str  # "" if the query was answered
    seconds: float
    timeout: float  # seconds that the checkout was given
    configured: float  # seconds, of the pool's timeout

    def __str__(self) -> str:
        if not self.error:
            return f"worked after {in_words(self.seconds)}"
        return f"failed after {in_words(self.seconds)} {self.limit}: {self.error}"

    @property
    def limit(self) -> str:
        return f"of {shortened(self.timeout, self.configured)}"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A pool of the drill, not open yet, and the state that its promises share."""

    configured: Configured
    control: Control
    pool: AnyPool
    wrapper: Any  # Django's, with that pool; for the thread that runs the drill
    cleanup: ExitStack  # run at the end
    over: Event  # set at the end
    held: list[AnyConnection] = field(default_factory=list)  # checked out

    @property
    def step_timeout(self) -> float:
        """Seconds to wait for something that should be immediate, even on all connections."""
        return STEP_TIMEOUT + self.pool.max_size * self.control.connect_seconds

    @property
    def pings(self) -> bool:
        given = self.configured.pool
        return self.configured.health_checks or (isinstance(given, dict) and "check" in given)

    def wait_for_sessions(self, condition: Callable[[int], bool]) -> int:
        """Wait up to `step_timeout` until the number meets the condition; return the number."""
        deadline = monotonic() + self.step_timeout
        while not condition(count := self.control.sessions()) and monotonic() < deadline:
            sleep(0.01)
        return count

    def own_wrapper(self) -> Any:
        wrapper = self.wrapper.copy()
        wrapper._connection_pools = self.wrapper._connection_pools
        return wrapper

    def first(self) -> AnyConnection:
        self.pool.open(wait=True, timeout=self.step_timeout)
        conn: AnyConnection = self.pool.getconn(self.step_timeout)
        return conn

    def check_out(self, timeout: float) -> CheckedOut:
        """Check out a connection and query it. It is closed at the end, even if not returned."""
        configured = self.pool.timeout
        timeout = min(timeout, configured)
        conn, error = None, ""
        began = perf_counter()
        try:
            conn = self.pool.getconn(timeout)
            self.cleanup.callback(conn.close)
            conn.execute("SELECT 1")
        except psycopg.Error as problem:
            error = first_line(problem)
        seconds = perf_counter() - began
        return CheckedOut(
            conn=conn, error=error, seconds=seconds, timeout=timeout, configured=configured
        )

    def check_out_many(self, count: int) -> list[AnyConnection]:
        """Check out up to `count` connections at the same time, each in its own thread."""
        done: SimpleQueue[CheckedOut] = SimpleQueue()

        def check_out() -> None:
            done.put(self.check_out(self.step_timeout))
            self.over.wait()  # the pool does not name a thread that has ended as a holder

        for number in range(count):
            Thread(target=check_out, name=f"{THREAD} {number + 1}", daemon=True).start()
        return [conn for _ in range(count) if (conn := done.get().conn)]

    def put_back(self, *conns: AnyConnection | None) -> None:
        for conn in conns:
            if conn:
                return_unchanged(self.pool, conn)


@dataclass(frozen=True)
class Promise:
    name: str
    text: str
    test: Callable[[Stage], Seen]


def judged(good: bool, what: str) -> Seen:
    return Seen("kept" if good else "broken", what)


def in_words(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def shortened(seconds: float, configured: float) -> str:
    return f"{seconds:g} s" + f" (shortened from {configured:g} s)" * (seconds < configured)
