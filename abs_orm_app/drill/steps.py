"""What a pool promises, and how to see on a live database whether it keeps it."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread
from time import monotonic, perf_counter, sleep
from typing import Any, Literal

import psycopg
from psycopg import Connection
from psycopg_pool import ConnectionPool

from abs_orm_app.facts.databases import NEVER, Configured
from abs_orm_app.facts.timeout import run_with_timeout
from abs_orm_app.pool.constants import PING_AFTER
from abs_orm_app.pool.messages import first_line
from abs_orm_app.pool.pool import HardenedPool

AnyPool = ConnectionPool[Any]
AnyConnection = Connection[Any]
Verdict = Literal["kept", "broken", "skipped"]

# Seconds. What is configured is shortened to these where it is longer.
EXHAUSTED_TIMEOUT = 0.5  # of a checkout that has to fail
FAULT_TIMEOUT = 2.0  # of a checkout from a pool of one connection, which is bad
RESTART_TIMEOUT = 5.0  # of a checkout from a pool in which all connections are bad
RECYCLE = 1.0
# Seconds of tolerance
PATIENCE = 5.0  # for what should come at once
LATE = 0.3  # for what should come at a timeout
AT_ONCE = 1.0  # for replacing connections, besides the time to open one

THREAD = "drill"  # the threads that check connections out are "drill 1", "drill 2" ...


@dataclass(frozen=True)
class Seen:
    """What was seen of a promise."""

    verdict: Verdict
    what: str


@dataclass(frozen=True)
class Promise:
    """Something that a pool promises, and the function that looks whether it is kept."""

    name: str
    text: str
    look: Callable[[Stage], Seen]


@dataclass(frozen=True, kw_only=True)
class Watch:
    """A connection to ask the server about the sessions of the drill's pools."""

    control: AnyConnection
    application_name: str  # of those sessions, and of no other
    connect_seconds: float  # that opening a connection takes
    free: int | None  # connections that the server had left for this role; None: unknown

    def sessions(self) -> int:
        """How many there are."""
        return self._ask("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s")

    def terminate(self) -> int:
        """Let the server end them; returns how many were told to."""
        return self._ask(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = %s"
        )

    def _ask(self, query: str) -> int:
        rows: list[tuple[int]] = self.control.execute(query, [self.application_name]).fetchall()
        return rows[0][0]


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """How one checkout with one query went."""

    conn: AnyConnection | None
    error: str  # "" if the query was answered
    seconds: float
    timeout: float  # seconds it was allowed to take
    configured: float  # seconds of the pool's timeout

    def __str__(self) -> str:
        if not self.error:
            return f"worked after {_time(self.seconds)}"
        return f"failed after {_time(self.seconds)} {self.limit}: {self.error}"

    @property
    def limit(self) -> str:
        return f"of {_shortened(self.timeout, self.configured)}"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A pool of the drill's own, not opened yet, and what the promises seen there share."""

    configured: Configured
    watch: Watch
    pool: AnyPool
    cleanup: ExitStack  # for what is to be closed at the end
    over: Event  # set at the end
    held: list[AnyConnection] = field(default_factory=list)  # checked out

    @property
    def patience(self) -> float:
        """Seconds to wait for what should come at once; it may be all of the connections."""
        return PATIENCE + self.pool.max_size * self.watch.connect_seconds

    @property
    def pings(self) -> bool:
        given = self.configured.pool
        return self.configured.health_checks or (isinstance(given, dict) and "check" in given)

    def wait_for_sessions(self, condition: Callable[[int], bool]) -> int:
        """Wait, but not for ever, until their number is as it should be; returns it."""
        deadline = monotonic() + self.patience
        while not condition(count := self.watch.sessions()) and monotonic() < deadline:
            sleep(0.01)
        return count

    def first(self) -> AnyConnection:
        """Open the pool, and check out a connection."""
        self.pool.open(wait=True, timeout=self.patience)
        conn: AnyConnection = self.pool.getconn(self.patience)
        return conn

    def check_out(self, timeout: float) -> Checkout:
        """Check out and query. The connection is closed at the end, returned or not."""
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
        return Checkout(
            conn=conn, error=error, seconds=seconds, timeout=timeout, configured=configured
        )

    def check_out_many(self, count: int) -> list[AnyConnection]:
        """Check out up to `count` connections at once, each in a thread of its own."""
        done: SimpleQueue[Checkout] = SimpleQueue()

        def check_out() -> None:
            done.put(self.check_out(self.patience))
            self.over.wait()  # a thread that had ended could not be the holder any more

        for number in range(count):
            Thread(target=check_out, name=f"{THREAD} {number + 1}", daemon=True).start()
        return [conn for _ in range(count) if (conn := done.get().conn)]

    def put_back(self, *conns: AnyConnection | None) -> None:
        for conn in conns:
            if conn:
                self.pool.putconn(conn)


def _judged(good: bool, what: str) -> Seen:
    return Seen("kept" if good else "broken", what)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _shortened(seconds: float, configured: float) -> str:
    return f"{seconds:g} s" + f" (shortened from {configured:g} s)" * (seconds < configured)


# In one pool with the configured settings, one after the other


def fills(stage: Stage) -> Seen:
    size = stage.pool.min_size
    stage.pool.open()
    count = stage.wait_for_sessions(lambda count: count >= size)
    if count != size:
        return Seen("broken", f"{count} of {size} connections on the server{_left(stage)}")
    return Seen("kept", f"{count} connections on the server")


def grows(stage: Stage) -> Seen:
    limit = stage.pool.max_size
    stage.held.extend(stage.check_out_many(limit))
    taken, count = len(stage.held), stage.watch.sessions()
    what = f"{taken} of {limit} checked out at once, {count} on the server"
    if not taken == count == limit:
        return Seen("broken", what + _left(stage))
    return Seen("kept", what)


def _left(stage: Stage) -> str:
    """Why there are not more connections, if it is the server's limit."""
    free = stage.watch.free
    if free is None or free >= stage.pool.max_size:
        return ""
    return f", which had {free} left for this role"


def stops_at_limit(stage: Stage) -> Seen:
    limit = stage.pool.max_size
    if len(stage.held) < limit:
        return _NOT_EXHAUSTED
    more = stage.check_out(EXHAUSTED_TIMEOUT)
    stage.put_back(more.conn)
    count = stage.watch.sessions()
    if more.conn or count > limit:
        return Seen("broken", f"one more {more}; {count} on the server")
    return _judged(
        abs(more.seconds - more.timeout) <= LATE,
        f"it failed after {_time(more.seconds)} {more.limit}; still {count} on the server",
    )


def names_holder(stage: Stage) -> Seen:
    if len(stage.held) < stage.pool.max_size:
        return _NOT_EXHAUSTED
    error = stage.check_out(timeout=0.1).error
    holders = stage.pool.holders() if isinstance(stage.pool, HardenedPool) else []
    for holder in holders:
        if repr(holder.thread) in error and str(holder.pid) in error:
            traced = ", with the stack that took it" if holder.stack else ""
            return Seen(
                "kept",
                f"thread {holder.thread!r}, for {_time(holder.seconds)}"
                f" (server process {holder.pid}{traced})",
            )
    return Seen("broken", f"it says no more than: {error}")


_NOT_EXHAUSTED = Seen("skipped", "the pool could not be exhausted")


def returns(stage: Stage) -> Seen:
    count = len(stage.held)
    stage.put_back(*stage.held)
    stage.held.clear()
    again = stage.check_out_many(count)
    stage.put_back(*again)
    return _judged(len(again) == count, f"{len(again)} of {count} could be checked out again")


def replaces_ended(stage: Stage) -> Seen:
    if not stage.pings:
        return _NO_PRE_PING
    ended = stage.watch.terminate()
    stage.wait_for_sessions(lambda count: count == 0)
    checkout = stage.check_out(RESTART_TIMEOUT)
    stage.put_back(checkout.conn)
    at_once = checkout.seconds <= AT_ONCE + stage.watch.connect_seconds
    return _judged(
        at_once and not checkout.error, f"{ended} were ended; the next checkout {checkout}"
    )


_NO_PRE_PING = Seen("skipped", "pre-ping is off")


# Each in a pool of one connection: more would show no more


def replaces_expired(stage: Stage) -> Seen:
    if stage.configured.value("recycle") == NEVER:
        return Seen("skipped", "recycle is off: no connection expires")
    configured = stage.pool.max_lifetime
    recycle = stage.pool.max_lifetime = min(RECYCLE, configured)
    old = stage.first()
    stage.put_back(old)
    sleep(recycle)
    checkout = stage.check_out(stage.patience)
    age = f"idle past its recycle time of {_shortened(recycle, configured)}"
    if checkout.conn is old:
        return Seen("broken", f"one that was {age} was handed out")
    return _judged(not checkout.error, f"one was {age}; the next checkout {checkout}")


def bears_silence(stage: Stage) -> Seen:
    if not stage.pings:
        return _NO_PRE_PING
    conn = stage.first()
    # What is sent gets lost, and nothing comes: that is a network which drops every packet.
    silent, peer = socket.socketpair()
    stage.cleanup.callback(peer.close)  # ends a checkout that still waits
    os.dup2(silent.fileno(), conn.pgconn.socket, inheritable=False)
    silent.close()
    stage.put_back(conn)
    sleep(PING_AFTER + 0.1)
    timeout = min(FAULT_TIMEOUT, stage.pool.timeout)
    of = f"of {_shortened(timeout, stage.pool.timeout)}"
    try:
        checkout = run_with_timeout(timeout + 1, lambda: stage.check_out(timeout))
    except TimeoutError:
        return Seen("broken", f"the next checkout still waited after {timeout + 1:.2f} s {of}")
    how = "failed" if checkout.error else "worked"
    return _judged(
        checkout.seconds <= timeout + LATE,
        f"the next checkout {how} after {_time(checkout.seconds)} {of}",
    )


def reclaims_dropped(stage: Stage) -> Seen:
    stage.put_back(stage.first())
    stage.cleanup.callback(gc.collect)
    thread = Thread(target=_drop_one, args=[stage.pool], name=f"{THREAD} dropping", daemon=True)
    thread.start()
    thread.join()
    checkout = stage.check_out(FAULT_TIMEOUT)
    return _judged(
        not checkout.error, f"a thread dropped the only one; the next checkout {checkout}"
    )


def _drop_one(pool: AnyPool) -> None:
    # Django's wrapper of a connection is such a cycle, which only the garbage collector frees.
    cycle: list[Any] = [pool.getconn()]
    cycle.append(cycle)


# When the pools are closed


def leaves_nothing(stage: Stage) -> Seen:
    count = stage.wait_for_sessions(lambda count: count == 0)
    return _judged(count == 0, f"{count} of the drill's sessions are left")


IN_CONFIGURED_POOL = (
    Promise("size", "The pool fills to its size.", fills),
    Promise("overflow", "It grows to size + overflow.", grows),
    Promise("timeout", "It grows no further: one more checkout fails, on time.", stops_at_limit),
    Promise("explanation", "The error names who holds a connection.", names_holder),
    Promise("return", "All slots return.", returns),
    Promise("pre-ping", "Connections that the server ended are replaced.", replaces_ended),
)
IN_POOL_OF_ONE = (
    Promise("recycle", "An expired connection is not handed out.", replaces_expired),
    Promise("deadline", "The timeout holds when the network falls silent.", bears_silence),
    Promise("leak", "A connection that is dropped gives its slot back.", reclaims_dropped),
)
AT_THE_END = Promise("clean", "Nothing is left on the server.", leaves_nothing)
