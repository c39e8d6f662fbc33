"""A pool of PostgreSQL connections that keeps the promises of its settings under faults.

Its API, parameters, statistics and exceptions are psycopg_pool's; `docs/why-our-own-pool.md` says
why it is another class. How it works:

- `idle` holds the idle connections, the one used last at the right; `in_use` the entries of those
  that are checked out; `entries` the entries of all open ones; `queue` the waiting requests.
- A checkout takes an idle connection, or waits in the queue. A return hands the connection to the
  request that has waited longest, or makes it idle. Each publishes what it did and then looks at
  the other side again, so that an idle connection and a waiting request cannot miss each other.
- The thread that takes an entry out of `in_use` returns that connection, so it is returned once.
- `connector.py` opens connections; the thread of `housekeeping.py` does everything else.

No lock guards this state, and no request ever holds a lock: each step is one operation of a
built-in container, which is atomic with and without the GIL. So an exception that is raised in a
thread at any point, or a signal handler or a finalizer that checks out or returns a connection,
can neither leave a lock locked nor block on one. A connection that an interrupted step has dropped
is garbage-collected; housekeeping then closes it and frees its slot.

Copies of the containers are made with `list`: Python 3.11 may collect garbage within `tuple`, and a
finalizer may then change what is being copied.

Invariant: `entries` + the connector's attempts <= `max_size`. A connection leaves `entries` only
after it was closed, so that the server never counts more either.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import inf
from threading import current_thread
from time import monotonic
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

import psycopg
from psycopg import Connection
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg_pool import PoolClosed

from abs_orm_app.pool import liveness, messages
from abs_orm_app.pool.cleaner import Clean, Cleaner
from abs_orm_app.pool.cleaning import clean as take_back
from abs_orm_app.pool.connector import Connector
from abs_orm_app.pool.constants import PING_AFTER, ROUND_TRIP
from abs_orm_app.pool.ending import let_the_process_end, settle
from abs_orm_app.pool.entry import ENTRY, AnyConnection, Entry, Holder, Pin, frames_of_caller
from abs_orm_app.pool.errors import closed_error, timeout_error
from abs_orm_app.pool.growth import PARALLEL_CONNECTS
from abs_orm_app.pool.histogram import BOUNDS, Timings
from abs_orm_app.pool.housekeeping import housekeeping, observers
from abs_orm_app.pool.idle import Idle
from abs_orm_app.pool.leaks import LeakWatch
from abs_orm_app.pool.pins import holder_of
from abs_orm_app.pool.placement import Placement
from abs_orm_app.pool.pre_ping import PING_TIMEOUT, is_alive
from abs_orm_app.pool.queue import Queue, Waiter
from abs_orm_app.pool.sizes import checked_sizes
from abs_orm_app.pool.statistics import POOL_OPENING, Statistics
from abs_orm_app.pool.time_limits import TimeLimits
from abs_orm_app.pool.upkeep import close_lost
from abs_orm_app.pool.waiting import wait_for_connection

logger = logging.getLogger("abs_orm_app.pool")
IDLE, OK = TransactionStatus.IDLE, ConnStatus.OK


_every_pool: WeakValueDictionary[object, HardenedPool] = WeakValueDictionary()
# Each is called with each new pool before it is opened, for example to set `use_times.record`.
new_pool_hooks: list[Callable[[HardenedPool], object]] = []


def every_pool() -> list[HardenedPool]:
    """The pools of this process. Other threads may make some meanwhile."""
    return [pool for ref in _every_pool.valuerefs() if (pool := ref()) is not None]


class HardenedPool:
    """A connection pool whose timeout, pre-ping, recycle and limits hold under faults.

    Takes psycopg_pool's parameters, with these differences:

    `check`: called at each checkout in place of the ping. If it raises, or takes too long, the
    connection is not handed out.
    `num_workers`: how many connections are opened at a time; a thread ends when it has connected.
    `open`: False by default.

    And these:

    `pre_ping`: ping a connection that was idle for a while before it is handed out.
    `leak_seconds`: warn about a connection held longer, with the lines that took it; None: off, and
    no stack is recorded.
    `database`: the name of the database; the pool only stores it.
    `rotating`: the password may change while the pool is open; once a password has worked, the
    pool retries after a refusal, with the password that is valid then.
    `reads_only`: the project only reads through it, so a standby is as good as a primary.
    `successor`: returns the pool that serves the waiting requests when this one is closed, or
    None. Called in their threads.
    `clean`: cleans a connection whose entry is `dirty`, or, with `clean_always`, each that is
    returned, in a thread of the pool; returns False if the connection must be replaced.
    `reclaim`: returns a connection that its holder does not use to the pool; False if it is used.
    Called by housekeeping while requests wait and all connections are in use.
    `pin_of`: returns what needs the session of a connection that is checked out, for reports;
    `UNUSED` if nothing does, but it is kept. Called in any thread.

    `getconn` raises `PoolTimeout` at the deadline, with the last fault as its cause;
    `psycopg.OperationalError` at once for a permanent fault; `PoolClosed`; and
    `TooManyRequests` if `max_waiting` is set. Durations are in seconds.
    """

    _made = 0  # for the names of pools that get none

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        connection_class: type[AnyConnection] = Connection,
        kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool = False,  # noqa: A002 - psycopg_pool's name for it
        configure: Callable[[AnyConnection], object] | None = None,
        check: Callable[[AnyConnection], object] | None = None,
        reset: Callable[[AnyConnection], object] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: Callable[[HardenedPool], object] | None = None,
        num_workers: int = PARALLEL_CONNECTS,
        pre_ping: bool = True,
        leak_seconds: float | None = None,
        database: str | None = None,
        rotating: bool = False,
        reads_only: bool = False,
        successor: Callable[[], HardenedPool | None] | None = None,
        clean: Clean | None = None,
        clean_always: bool = False,
        reclaim: Callable[[AnyConnection], bool] | None = None,
        pin_of: Callable[[AnyConnection], Pin | None] | None = None,
    ) -> None:
        if num_workers < 1:
            raise ValueError("num_workers must be at least 1")
        if name is None:
            HardenedPool._made += 1
            name = f"pool-{HardenedPool._made}"
        self.name = name
        self.conninfo, self.kwargs, self.connection_class = conninfo, kwargs, connection_class
        self.configure, self._reset, self._reconnect_failed = configure, reset, reconnect_failed
        self.close_returns = close_returns
        self.timeout, self.max_waiting, self.num_workers = timeout, max_waiting, num_workers
        self.max_lifetime, self.max_idle = max_lifetime, max_idle
        self.reconnect_timeout = reconnect_timeout
        self.pre_ping, self.leak_seconds = pre_ping, leak_seconds
        self.own_check = check
        self._trusts = not pre_ping and check is None
        self.ping_after = -inf if check else PING_AFTER
        self.database = database
        self._successor = successor
        self.reclaim, self.pin_of = reclaim, pin_of
        self.cleaner = Cleaner(self, clean, always=clean_always) if clean else None
        self._min_size, self._max_size = checked_sizes(min_size, max_size)
        self._closed, self.was_opened, self.ended = True, False, False

        self.idle = Idle()
        self.entries: set[Entry] = set()
        self.in_use: set[Entry] = set()
        self.queue, self.until_full = Queue(), Queue()
        self._waiting = self.queue.waiters
        self.statistics = Statistics()
        self.wait_times = self.statistics.waits
        self.use_times = self.statistics.uses
        self.create_times = self.statistics.creates
        self.leaks = LeakWatch(self)
        self.placement = Placement(self.entries, reads_only=reads_only)
        self.time_limits = TimeLimits()
        self.connector = Connector(self, parallel=num_workers, rotating=rotating)
        self.due = 0.0  # when housekeeping looks at the pool next (`monotonic`)
        self.owes_collection = False  # a garbage collection was postponed for lack of time
        self.collected_at = float("-inf")
        self.described = (float("-inf"), "")  # when, and what a timeout says of the pool
        _every_pool[object()] = self
        for hook in new_pool_hooks:
            hook(self)
        if open:
            self.open()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} {self.name!r} at 0x{id(self):x}>"

    # Checkout

    def getconn(self, timeout: float | None = None) -> AnyConnection:  # noqa: C901 - one screen
        """Check out a connection; return it with `putconn`.

        `timeout`: seconds to wait at most; the pool's timeout by default.
        """
        now = monotonic()
        if timeout is None:
            timeout = self.timeout
        deadline = now + timeout
        self.statistics.requests += 1
        conn: Any = None
        try:
            while True:
                if self.idle and not self._waiting:
                    try:
                        conn = self.idle.pop()
                    except IndexError:  # another thread has taken the last one
                        continue
                else:
                    conn = wait_for_connection(self, now, timeout, deadline)
                    now = monotonic()
                entry = conn._pool_entry
                if entry.expires_at > now and (
                    self._trusts
                    or (
                        now - entry.idle_since <= self.ping_after
                        and entry.pgconn.status == OK
                        and not entry.poll(0)
                    )
                    or is_alive(self, conn, entry, now, deadline)
                ):
                    entry.taken_at = now
                    entry.thread = current_thread()
                    if self.leak_seconds is not None:
                        entry.frames = frames_of_caller()
                    conn._pool = self
                    self.in_use.add(entry)
                    checked_out: AnyConnection = conn
                    return checked_out
                self.discard(conn)
                conn = None
                now = monotonic()
        except PoolClosed:
            successor = self._next_pool(deadline)
            if successor is None:
                self.statistics.errors += 1
                raise
        except BaseException:
            self.statistics.errors += 1
            if conn is not None:
                self._take_back(conn)
            raise
        return successor.getconn(max(0.0, deadline - monotonic()))

    def _next_pool(self, deadline: float) -> HardenedPool | None:
        """Return the open pool that replaces this closed one; None if there is none."""
        let_the_process_end(self)
        while self._successor and self.was_opened and not self.ended and monotonic() < deadline:
            pool = self._successor()
            if pool is None or pool is self:
                return None
            try:
                pool.open()
            except PoolClosed:
                continue
            return pool
        return None

    # Return

    def putconn(self, conn: AnyConnection) -> None:  # noqa: C901 - one screen
        """Return a connection. Raises `ValueError` for one that is not checked out of this pool."""
        entry: Any = None
        claimed = given = broken = False
        said: list[str] = []
        try:
            entry = conn._pool_entry  # type: ignore[attr-defined]
            self.in_use.remove(entry)
            claimed = True
            now = monotonic()
            held = now - entry.taken_at
            uses = self.use_times
            uses.counts[bisect_left(BOUNDS, held)] += 1
            uses.total += held
            if uses.record is not None:
                uses.record(held)
            if self._reset is not None or entry.pgconn.transaction_status != IDLE:
                said = take_back(self, conn, self._reset)
                broken = conn.closed
                self.statistics.returns_bad += broken
            if broken or held > ROUND_TRIP:
                self.placement.returned(entry, conn)
            entry.idle_since = now if entry.suspected_at < entry.taken_at else -inf
            entry.thread = entry.frames = None
            entry.reported = entry.examined = False
            if (
                broken
                or self._closed
                or entry.expires_at <= now
                or len(self.entries) > self._max_size
            ):
                self.discard(conn)
            else:
                conn._pool = None
                given = True
                if self.cleaner and (entry.dirty is not None or self.cleaner.always):
                    self.cleaner.add(conn)
                elif not (self._waiting and self.queue.hand_over(conn)):
                    self.idle.append(conn)
                    self._look_again()
        except BaseException as error:
            if not claimed and isinstance(error, AttributeError | KeyError):
                raise ValueError(self._why_not_ours(conn)) from None
            if entry is not None and not given and entry not in self.in_use:
                self.discard(conn)  # interrupted half-way
            raise
        for text in said:  # last, because a log handler may use the pool
            logger.warning(text)

    def saw_error(self, conn: AnyConnection, error: BaseException) -> None:
        """Learn from a statement's error on a connection that is checked out. Never waits."""
        entry = getattr(conn, ENTRY, None)
        if isinstance(entry, Entry):
            self.placement.failed(conn, entry, error)

    def _why_not_ours(self, conn: AnyConnection) -> str:
        pool, entry = getattr(conn, "_pool", None), getattr(conn, ENTRY, None)
        other = pool.name if pool is not None and pool is not self else None
        lost = isinstance(entry, Entry) and entry.lost
        return messages.cannot_return(self.name, str(conn), other=other, lost=lost)

    def add(self, conn: Any) -> None:
        """Hand a connection to a waiting request, or make it idle; discard it if it is expired."""
        entry = conn._pool_entry
        now = monotonic()
        if self._closed or entry.expires_at <= now or len(self.entries) > self._max_size:
            self.discard(conn)
            return
        conn._pool = None
        if not (self._waiting and self.queue.hand_over(conn)):
            self.idle.append(conn)
            self._look_again()

    def _look_again(self) -> None:
        """After a connection became idle, react to changes that another thread made meanwhile."""
        if self._waiting:
            self.serve()
        if self._closed:
            self._close_idle()
        if self.until_full.waiters and len(self.idle) >= self._min_size:
            self.until_full.tell_all(bool)

    def serve(self) -> None:
        """Hand idle connections to waiting requests."""
        while self._waiting and self.idle:
            try:
                conn = self.idle.pop()
            except IndexError:
                return
            if not self.queue.hand_over(conn):
                self.idle.append(conn)

    def _take_back(self, conn: Any) -> None:
        """Undo a checkout that was interrupted."""
        self.in_use.discard(conn._pool_entry)
        if conn.pgconn.transaction_status == IDLE:
            self.add(conn)
        else:
            self.discard(conn)  # in the middle of a ping

    def discard(self, conn: Any) -> None:
        """Close a connection that no other thread has, free its slot, and call housekeeping.

        The slot is freed last, because the server counts the connection until it is closed.
        """
        self.hang_up(conn)
        entry = conn._pool_entry
        self.entries.discard(entry)
        if entry.misplaced:
            self.statistics.misplaced += 1
        elif entry.expires_at <= monotonic():
            self.statistics.expired += 1
        if not self._closed:
            self.call_housekeeping()

    def hang_up(self, conn: Any) -> None:
        conn._pool = None
        conn.close()

    def _close_idle(self) -> None:
        while self.idle:
            try:
                conn = self.idle.popleft()
            except IndexError:
                return
            self.discard(conn)

    # Life

    @property
    def min_size(self) -> int:
        return self._min_size

    @property
    def max_size(self) -> int:
        return self._max_size

    @property
    def closed(self) -> bool:
        """True for a pool that was closed, or is not open yet."""
        return self._closed

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Start to fill the pool to its size. Does nothing on an open pool.

        `wait`: return when it is filled, see `wait()`. Raises `PoolClosed` for a pool that was
        closed.
        """
        if self._closed:
            if self.was_opened:
                let_the_process_end(self)
                raise PoolClosed(f"the pool {self.name!r} was closed and cannot be reused")
            self._closed = False
            self.was_opened = True
            self.call_housekeeping()
        if wait:
            self.wait(timeout)

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[AnyConnection]:
        """Check out a connection for a `with` block, and commit or roll back at its end."""
        conn = self.getconn(timeout)
        try:
            with conn:
                yield conn
        finally:
            self.putconn(conn)

    def wait(self, timeout: float = 30.0) -> None:
        """Wait up to `timeout` seconds until the pool has its size; close it and raise if not."""
        began = monotonic()
        waiter = Waiter(began, began + timeout)
        try:
            self.until_full.join(waiter)
            if self._closed:
                raise closed_error(self)
            self._look_again()
            self.call_housekeeping()
            outcome = waiter.wait(began + timeout)
        finally:
            self.until_full.leave(waiter)
        if outcome is None:
            outcome = timeout_error(self, timeout)
        if isinstance(outcome, BaseException):
            self.close()
            raise outcome

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the limits; connections beyond them are closed at once, or on return."""
        self._min_size, self._max_size = checked_sizes(min_size, max_size)
        while len(self.entries) > self._max_size and self.idle:
            self.close_longest_idle(monotonic())
        self._look_again()
        self.call_housekeeping()

    def drain(self) -> None:
        """Replace each connection by a new one: idle ones now, those in use on their return."""
        for entry in list(self.entries):
            entry.expire()
        for conn in list(self.idle):
            if conn._pool_entry.expires_at < 0 and self.idle.take(conn):
                self.discard(conn)

    def check(self) -> None:
        """Ping each idle connection, and replace those that are expired or do not answer."""
        hangs = False  # once one does not answer, the others are presumed hung
        for conn in list(self.idle):
            if not self.idle.take(conn):
                continue
            if not hangs and liveness.answers(conn, PING_TIMEOUT):
                conn._pool_entry.idle_since = monotonic()
                self.add(conn)
            else:
                hangs = hangs or not conn.closed
                self.statistics.stale += 1
                self.discard(conn)

    @staticmethod
    def check_connection(conn: AnyConnection) -> None:
        """Raise `psycopg.OperationalError` if the connection does not answer within 5 s."""
        if not liveness.answers(conn, PING_TIMEOUT):
            raise psycopg.OperationalError("the connection does not answer")

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool. Waiting requests get `PoolClosed`; a connection in use is closed on
        return. Waits up to `timeout` seconds for connections that are being opened.
        """
        was_open = not self._closed
        self._closed = self.was_opened = True
        self.queue.tell_all(lambda: closed_error(self))
        self.until_full.tell_all(lambda: closed_error(self))
        self._close_idle()
        close_lost(self)
        if was_open:
            settle(self, timeout)
            observers.tell(self)
        self.call_housekeeping()  # which forgets it

    def abandon(self) -> None:
        """In a forked child: drop the parent's connections without sending on their sockets."""
        self._closed = self.was_opened = True
        for entry in list(self.entries):
            entry.detach()
        self.entries.clear()
        self.in_use.clear()
        for conn in list(self.idle):
            self.hang_up(conn)
        self.idle.clear()
        self._waiting.clear()
        self.until_full.waiters.clear()
        self.connector.abandon()
        if self.cleaner:
            self.cleaner.reset()

    def reconnect_failed(self) -> None:
        """Called when connecting has failed for `reconnect_timeout` seconds."""
        if self._reconnect_failed is not None:
            self._reconnect_failed(self)

    # For housekeeping and the connector

    def call_housekeeping(self) -> bool:
        return housekeeping.call(self)

    def connection_lost(self, entry: Entry) -> None:
        """Called when a connection was garbage-collected, at any point of any thread."""
        if entry in self.entries:
            entry.lost = True
            self.in_use.discard(entry)  # a finalizer that returns it now is refused
            self.call_housekeeping()

    def has_room(self) -> bool:
        return len(self.entries) + len(self.connector.attempts) < self._max_size

    def is_below_size(self) -> bool:
        return len(self.entries) < self._min_size

    def has_connections_in_use(self) -> bool:
        return len(self.entries) > len(self.idle)

    def close_longest_idle(self, before: float) -> bool:
        """Close the connection that has been idle longest, if it was not used since `before`."""
        try:
            conn = self.idle[0]
        except IndexError:
            return False
        if conn._pool_entry.idle_since > before or not self.idle.take(conn):
            return False
        self.discard(conn)
        return True

    def say(self, text: str) -> None:
        """Log from a thread of its own, because a log handler may use the pool, and wait."""
        with suppress(RuntimeError):  # the process is about to end
            threading.Thread(target=logger.warning, args=(text,), daemon=True).start()

    # Facts

    def holders(self) -> list[Holder]:
        """Who has a connection checked out, the longest first."""
        holders = [holder_of(self, entry) for entry in list(self.in_use)]
        return sorted(holders, key=lambda holder: holder.seconds, reverse=True)

    def get_stats(self) -> dict[str, int]:
        """Return psycopg_pool's statistics, and those that `statistics.py` adds.

        `usage_ms` counts `getconn`/`putconn` too.
        """
        return self.statistics.counters() | self._measures()

    def pop_stats(self) -> dict[str, int]:
        """Return the statistics and set the counters to zero."""
        return self.statistics.pop() | self._measures()

    def _measures(self) -> dict[str, int]:
        opening = len(self.connector.attempts)
        return {
            "pool_min": self._min_size,
            "pool_max": self._max_size,
            "pool_size": len(self.entries) + opening,
            "pool_available": len(self.idle),
            "requests_waiting": len(self._waiting),
            POOL_OPENING: opening,
        }

    def timings(self) -> Timings:
        """How long requests waited and held, and connecting took, since the pool was made."""
        return self.statistics.timings()


HardenedPool.__module__ = "abs_orm_app.pool"  # its public name
