"""A pool of PostgreSQL connections that keeps the promises of its settings under faults.

Its API, parameters, statistics and exceptions are psycopg_pool's; `docs/how-it-works.md` says why
it is a separate class. This module checks out and returns connections; `core.py` has the state.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from threading import current_thread, main_thread
from time import sleep
from types import GenericAlias, TracebackType
from typing import Any, Self
from weakref import ref

import psycopg
from psycopg import Connection
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg_pool import PoolClosed

from abs_orm_app.pool import messages
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.closing import close
from abs_orm_app.pool.connector import Connector, Source
from abs_orm_app.pool.core import Core, Hooks
from abs_orm_app.pool.entry import ENDED, ENTRY, LOST, AnyConnection, Checkout, Entry
from abs_orm_app.pool.growth import PARALLEL_CONNECTS, checked_sizes
from abs_orm_app.pool.holders import Holder, frames_of_caller
from abs_orm_app.pool.housekeeping import observers
from abs_orm_app.pool.liveness import ROUND_TRIP
from abs_orm_app.pool.placement import Placement
from abs_orm_app.pool.pre_ping import PING_AFTER, PrePing, check_connection
from abs_orm_app.pool.queue import Handover, Waiter, copied
from abs_orm_app.pool.returning import Cleaner, make_idle
from abs_orm_app.pool.statistics import BOUNDS
from abs_orm_app.pool.steps import Steps, run
from abs_orm_app.pool.upkeep import Upkeep
from abs_orm_app.pool.waiting import closed_error, timeout_error, wait_for_connection

logger = logging.getLogger("abs_orm_app.pool")
IDLE, OK = TransactionStatus.IDLE, ConnStatus.OK
# A task is cancelled only between two steps, so its checkout loses nothing.
_CANCELLED = CancelledError, GeneratorExit
LAST_WAIT = 2.0  # seconds; a process that has begun to exit is gone by then

_every_pool: dict[object, Callable[[], HardenedPool | None]] = {}
# Each is called with each new pool before it is opened, e.g. to set `statistics.uses.record`.
new_pool_hooks: list[Callable[[HardenedPool], object]] = []


def every_pool() -> list[HardenedPool]:
    """Return the pools of this process. Other threads may create more meanwhile."""
    return [pool for weak in list(_every_pool.values()) if (pool := weak()) is not None]


def _of_source(name: str) -> Any:
    """An attribute that psycopg_pool's pools have, too. A change applies to later connections."""

    def get(pool: HardenedPool) -> Any:
        return getattr(pool._source, name)

    def change(pool: HardenedPool, value: Any) -> None:
        setattr(pool._source, name, value)

    return property(get, change)


class HardenedPool:
    """A connection pool whose timeout, pre-ping, recycle and limits hold under faults.

    Takes psycopg_pool's parameters, with these differences:

    `check`: called at each checkout instead of the ping. If it raises or takes too long, the
    connection is not handed out.
    `num_workers`: how many connections are opened at a time; a thread ends when none is missing.
    `open`: False by default.

    Additional parameters:

    `pre_ping`: ping a connection that was idle for a while before it is handed out.
    `leak_seconds`: warn about connections held longer, with the lines that took them; None: off,
    and no stack is recorded.
    `origin`: what its connections are made from; the pool only stores it.
    `hooks`: what the pool asks the code that uses it.

    `getconn` raises `PoolTimeout` at the deadline, with the last fault as its cause;
    `psycopg.OperationalError` at once for a permanent fault; `PoolClosed`; and `TooManyRequests` if
    `max_waiting` is set. Durations are in seconds.
    """

    __class_getitem__: Any = classmethod(GenericAlias)  # psycopg_pool's is generic
    _made = 0  # numbers the pools that get no name

    conninfo, kwargs = _of_source("conninfo"), _of_source("kwargs")
    max_lifetime = _of_source("max_lifetime")

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
        origin: object = None,
        hooks: Hooks | None = None,
    ) -> None:
        if num_workers < 1:
            raise ValueError("num_workers must be at least 1")
        if name is None:
            HardenedPool._made += 1
            name = f"pool-{HardenedPool._made}"
        hooks = hooks or Hooks()
        self.core = core = Core(name, min_size, max_size, timeout, hooks)
        core.max_waiting, core.leak_seconds = max_waiting, leak_seconds
        self.name, self.timeout, self.origin = name, timeout, origin
        self.pre_ping, self.leak_seconds = pre_ping, leak_seconds
        self.close_returns = close_returns
        self._reset = reset
        self._trusts = not pre_ping and check is None
        self.ping_after = -inf if check else PING_AFTER

        self.idle, self.entries, self.queue = core.idle, core.entries, core.queue
        self._waiting = core.queue.waiters
        self.statistics = core.statistics
        self._uses = core.statistics.uses
        self._source = source = Source(
            conninfo,
            connection_class,
            kwargs,
            configure,
            max_lifetime=max_lifetime,
            reconnect_timeout=reconnect_timeout,
            reconnect_failed=reconnect_failed,
            num_workers=num_workers,
        )
        self.placement = Placement(core.entries, reads_only=hooks.reads_only)
        self.connector = Connector(core, source, self.placement)
        self.cleaner = Cleaner(core, reset)
        self.upkeep = Upkeep(core, self.connector, self.cleaner, max_idle=max_idle)
        self.pings = PrePing(core, self.placement, self.upkeep.limits, check)
        key = object()
        _every_pool[key] = ref(self, lambda _: _every_pool.pop(key, None))
        for hook in new_pool_hooks:
            hook(self)
        if open:
            self.open()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} {self.name!r} at 0x{id(self):x}>"

    # Checkout

    def getconn(self, timeout: float | None = None) -> AnyConnection:
        """Check out a connection; return it with `putconn`.

        `timeout`: seconds to wait at most; the pool's timeout by default.
        """
        now = monotonic()
        if timeout is None:
            timeout = self.timeout
        self.statistics.checkouts += 1
        conn: Any = None
        try:
            if self.idle and not self._waiting:
                try:
                    conn = self.idle.pop()
                except IndexError:  # another thread has taken the last one
                    pass
                else:
                    entry = conn._pool_entry
                    try:
                        is_fit = entry.expires_at > now and (
                            self._trusts
                            or (
                                now - entry.idle_since <= self.ping_after
                                and entry.suspicion is None
                                and entry.pgconn.status == OK
                                and not entry.poll(0)
                            )
                        )
                    except RuntimeError:  # another thread polls
                        is_fit = False
                    if is_fit:
                        entry.taken_at = now
                        entry.thread = current_thread()
                        if self.leak_seconds is not None:
                            entry.frames = frames_of_caller()
                        conn._pool = self
                        entry.checkout = {}  # from here on it is in use
                        checked_out: AnyConnection = conn
                        return checked_out
            steps = self.checkout(conn, now, timeout, current_thread(), Waiter)
            conn = None
        except BaseException as error:
            self._undo_checkout(conn, error)
            raise
        return run(steps)

    def checkout(  # noqa: C901 - one screen
        self, conn: Any, now: float, timeout: float, holder: Any, make_waiter: type[Waiter]
    ) -> Steps[AnyConnection]:
        """The steps of a checkout that started at `now`, for a thread or a task.

        `conn`: an idle connection to try first. `holder`: for `Entry.thread`.
        """
        deadline = now + timeout
        try:
            while True:
                if conn is None:
                    if self.idle and not self._waiting:
                        try:
                            conn = self.idle.pop()
                        except IndexError:
                            continue
                    else:
                        conn = yield from wait_for_connection(
                            self.core, now, timeout, deadline, make_waiter
                        )
                        now = monotonic()
                entry = conn._pool_entry
                entry.thread = holder
                if entry.expires_at > now and (
                    self._is_fresh(entry, now)
                    or (yield from self.pings.passes(conn, entry, now, deadline))
                ):
                    entry.taken_at = now
                    if self.leak_seconds is not None:
                        entry.frames = frames_of_caller()
                    conn._pool = self
                    entry.checkout = {}
                    checked_out: AnyConnection = conn
                    return checked_out
                self.core.discard(conn)
                conn = None
                now = monotonic()
                if now >= deadline:  # even if another one is idle: it may fail as well
                    yield from wait_for_connection(self.core, now, timeout, deadline, make_waiter)
        except PoolClosed:
            successor = self._next_pool(deadline)
            if successor is None:
                self.statistics.errors += 1
                raise
        except BaseException as error:
            self._undo_checkout(conn, error)
            raise
        successor.statistics.checkouts += 1
        left = max(0.0, deadline - monotonic())
        return (yield from successor.checkout(None, monotonic(), left, holder, make_waiter))

    def _is_fresh(self, entry: Entry, now: float) -> bool:
        """True if a connection needs no ping. `getconn` has the same rule inline."""
        try:
            return self._trusts or (
                now - entry.idle_since <= self.ping_after
                and entry.suspicion is None
                and entry.pgconn.status == OK
                and not entry.poll(0)
            )
        except RuntimeError:
            return False

    def _undo_checkout(self, conn: Any, error: BaseException) -> None:
        """Take back the connection of a failed or interrupted checkout."""
        self.statistics.errors += not isinstance(error, _CANCELLED)
        self.core.interrupted |= not isinstance(error, (psycopg.Error, *_CANCELLED))
        if conn is None:
            return
        entry = conn._pool_entry
        checking, entry.checking = entry.checking, None
        if checking is not None and checking.setdefault(ENDED, self) is not self:
            return  # the task was stranded in the ping, and the pool has taken the connection
        entry.checkout.setdefault(ENDED, self)
        entry.thread = None
        if conn.pgconn.transaction_status == IDLE:
            self.core.add(conn)
        else:
            self.core.discard(conn)  # in the middle of a ping

    def _next_pool(self, deadline: float) -> HardenedPool | None:
        """Return the open pool that replaces this closed one; None if there is none."""
        core = self.core
        self._let_the_process_end()
        while core.was_opened and not core.ended and monotonic() < deadline:
            pool: HardenedPool | None = core.hooks.successor()
            if pool is None or pool is self:
                return None
            try:
                pool.open()
            except PoolClosed:
                continue
            return pool
        return None

    # Return

    def putconn(self, conn: AnyConnection) -> None:
        """Return a connection. Raises `ValueError` for one that is not checked out of this pool."""
        with_entry: Any = conn
        try:
            checkout = with_entry._pool_entry.checkout
        except AttributeError:
            returned = False  # it is from no pool of this class
        else:
            returned = self.end_checkout(conn, checkout, self.core.hooks.unseen)
        if not returned:
            raise ValueError(self._why_not_ours(conn))

    def return_unchanged(self, conn: Any) -> None:
        """Return a connection whose session nobody has changed; `putconn` may have it cleaned."""
        self.end_checkout(conn, conn._pool_entry.checkout)

    def end_checkout(  # noqa: C901 - one screen
        self, conn: Any, checkout: Checkout, dirty: Any = None, *, later: bool = False
    ) -> bool:
        """End this checkout and return its connection; False if it was returned before.

        `checkout`: the entry's dict at the time of the checkout.
        `dirty`: what was changed in its session, for `Hooks.clean`.
        `later`: leave it to the pool's threads to send what must be sent to the server.
        """
        if conn._pool is not self:
            return False
        handover = given = None
        text = ""
        mine: list[object] = []  # unique, so this thread can check whether it has won
        try:
            if checkout.setdefault(ENDED, mine) is not mine:
                return False
            entry, core = conn._pool_entry, self.core
            now = monotonic()
            held = now - entry.taken_at
            uses = self._uses
            uses.counts[bisect_left(BOUNDS, held)] += 1
            uses.total += held
            if uses.record is not None:
                uses.record(held)
            if dirty is not None and core.hooks.cleans:
                entry.dirty = dirty
            fit, pgconn = True, entry.pgconn
            if (
                pgconn.transaction_status != IDLE
                or entry.spoiled
                or conn.lock.locked()
                or self._reset is not None
            ):
                limits = self.cleaner.limits
                fit, text = make_idle(core, limits, conn, self._reset, later=later)
                self.statistics.returned_broken += not fit
            if (not fit or held > ROUND_TRIP) and not (later and entry.must_ask):
                self.placement.returned(entry, conn)
            entry.idle_since = now
            entry.thread = entry.frames = None
            entry.reported = entry.examined = False
            left_over = core.surplus and core.is_surplus()
            if not fit or left_over or core.closed or entry.expires_at <= now:
                given = True
                core.discard(conn)
            else:
                conn._pool = None
                if entry.dirty is not None or entry.unfinished or self.cleaner.always:
                    given = True
                    self.cleaner.add(conn)
                elif not (self._waiting and self.queue.hand_over(handover := Handover(conn))):
                    given = True
                    self.idle.append(conn)
                    if self._waiting or core.closed or core.until_full.waiters:
                        core.look_again()
        except BaseException:
            self.core.interrupted = True
            won = checkout.get(ENDED) is mine
            if won and not given and not (handover is not None and handover.taken):
                self.core.discard(conn)  # interrupted half-way
            raise
        if text:
            logger.warning(text)  # last, because a log handler may use the pool
        return True

    def saw_error(self, conn: AnyConnection, error: BaseException) -> None:
        """Learn from the error of a statement on a checked-out connection. Never waits."""
        entry = getattr(conn, ENTRY, None)
        if isinstance(entry, Entry):
            self.placement.failed(conn, entry, error)

    def _why_not_ours(self, conn: AnyConnection) -> str:
        pool, entry = getattr(conn, "_pool", None), getattr(conn, ENTRY, None)
        other = pool.name if pool is not None and pool is not self else None
        lost = isinstance(entry, Entry) and entry.checkout.get(ENDED) is LOST
        return messages.cannot_return(self.name, str(conn), other=other, lost=lost)

    # Life

    @property
    def min_size(self) -> int:
        return self.core.min_size

    @property
    def max_size(self) -> int:
        return self.core.max_size

    @property
    def max_waiting(self) -> int:
        return self.core.max_waiting

    @property
    def closed(self) -> bool:
        """True for a pool that was closed, or is not open yet."""
        return self.core.closed

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

        `wait`: return only when it is full, see `wait()`. Raises `PoolClosed` for a pool that was
        closed.
        """
        core = self.core
        if core.closed:
            if core.was_opened:
                self._let_the_process_end()
                raise PoolClosed(f"the pool {self.name!r} was closed and cannot be reused")
            # Once nothing refers to this pool, housekeeping closes what is left of it.
            core.pool = ref(self, lambda _: core.call_housekeeping())
            core.closed = False
            core.was_opened = True
            core.call_housekeeping()
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
        """Wait up to `timeout` seconds for the pool to reach its size, or close it and raise."""
        core = self.core
        began = monotonic()
        waiter = Waiter(began, began + timeout)
        try:
            core.until_full.join(waiter)
            if core.closed:
                raise closed_error(core)
            core.look_again()
            core.call_housekeeping()
            outcome = waiter.wait(began + timeout)
        finally:
            core.until_full.leave(waiter)
        if outcome is None:
            outcome = timeout_error(core, timeout)
        if isinstance(outcome, BaseException):
            self.close()
            raise outcome

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the limits; connections beyond them are closed at once, or on return."""
        core = self.core
        core.min_size, core.max_size = checked_sizes(min_size, max_size)
        core.surplus.clear()
        for _ in range(len(core.entries) + len(core.attempts) - core.max_size):
            if not core.close_longest_idle(monotonic()):
                core.surplus.append(None)
        core.look_again()
        core.call_housekeeping()

    def drain(self) -> None:
        """Replace all connections: idle ones now, those in use on their return."""
        for entry in list(self.entries):
            entry.expire()
        for conn in copied(self.idle):
            if conn._pool_entry.expires_at < 0 and self.core.take_idle(conn):
                self.core.discard(conn)

    def check(self) -> None:
        """Ping each idle connection, and replace those that are expired or do not answer."""
        self.pings.check_idle()

    check_connection = staticmethod(check_connection)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool. Waiting requests get `PoolClosed`; a connection in use is closed on
        return. Waits up to `timeout` seconds for connections that are being opened or cancelled.
        """
        core = self.core
        was_open, was_opened = not core.closed, core.was_opened
        core.closed = core.was_opened = True
        core.queue.tell_all(lambda: closed_error(core))
        core.until_full.tell_all(lambda: closed_error(core))
        core.take_back(inf)
        core.close_idle()
        core.close_discarded()
        core.close_lost()
        if was_open:
            self.settle(timeout)
            observers.tell(self)
        if was_opened:
            core.call_housekeeping()  # it then forgets this pool

    def close_orphans(self) -> None:
        """Close the connections in use whose thread has ended without returning them."""
        for entry in self.core.in_use:
            conn = entry.weak()
            if conn is None or not entry.is_orphaned():
                continue
            if entry.checkout.setdefault(ENDED, mine := object()) is mine:
                self.core.discard(conn)

    def succeed(self, elder: HardenedPool) -> None:
        """Count the connections of a closed pool as this pool's until they end."""
        self.core.elder = elder.core

    def settle(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for connections that are being opened, cleaned or cancelled,
        and open no more.
        """
        core, deadline = self.core, monotonic() + timeout
        core.paused = True
        while self._is_busy() and monotonic() < deadline:
            sleep(0.005)

    def _is_busy(self) -> bool:
        core = self.core
        return bool(core.attempts or core.closer.busy or self.cleaner.busy)

    def resume(self) -> None:
        """Start to open connections again, after `settle`."""
        self.core.paused = False
        if not self.core.closed:
            self.core.call_housekeeping()

    def close_for_good(self, timeout: float) -> None:
        """At the end of the process: close, in about `timeout` seconds."""
        self.core.ended = True
        self.close(timeout)
        self.close_orphans()

    def _let_the_process_end(self) -> None:
        """At the end of the process, make a daemon thread wait: it still runs for a moment.

        It then ends with the process. An error now would only make it print a traceback.
        """
        if self.core.ended and current_thread() is not main_thread():
            sleep(LAST_WAIT)

    def abandon(self) -> None:
        """In a forked child: drop the parent's connections without sending on their sockets."""
        core = self.core
        core.closed = core.was_opened = True
        for entry in list(core.entries):
            entry.detach()
        core.entries.clear()
        for conn in [*copied(core.idle), *copied(core.closing)]:
            close(conn, conn._pool_entry)
        core.idle.clear()
        core.closing.clear()
        core.queue.waiters.clear()
        core.queue.unclaimed.clear()
        core.until_full.waiters.clear()
        core.closer.abandon()
        self.connector.abandon()
        self.cleaner.reset()

    def reconnect_failed(self) -> None:
        """Called when connecting has failed for `reconnect_timeout` seconds."""
        if self._source.reconnect_failed is not None:
            self._source.reconnect_failed(self)

    # For housekeeping

    def tend(self, now: float) -> float:
        return self.upkeep.tend(now)

    # Facts

    @property
    def in_use(self) -> list[Entry]:
        """The entries of the connections that are checked out."""
        return self.core.in_use

    def holders(self) -> list[Holder]:
        """Return who has a connection checked out, the longest first."""
        holders = [self.core.holder_of(entry) for entry in self.core.in_use]
        return sorted(holders, key=lambda holder: holder.seconds, reverse=True)

    def get_stats(self) -> dict[str, int]:
        """Return psycopg_pool's statistics, and those that `statistics.py` adds.

        `usage_ms` also counts `getconn`/`putconn`.
        """
        return self.statistics.counters() | self._measures()

    def pop_stats(self) -> dict[str, int]:
        """Return the statistics and set the counters to zero."""
        return self.statistics.pop() | self._measures()

    def _measures(self) -> dict[str, int]:
        core = self.core
        opening, entries = len(core.attempts), len(core.entries)
        return {
            "pool_min": core.min_size,
            "pool_max": core.max_size,
            # A connection moving from `attempts` to `entries` is counted twice for a moment.
            "pool_size": min(entries + opening, max(entries, core.max_size)),
            "pool_available": len(core.idle),
            "requests_waiting": len(core.queue.waiters),
            "pool_opening": opening,
        }


HardenedPool.__module__ = "abs_orm_app.pool"  # its public name
