"""psycopg_pool's ConnectionPool, made to keep what its settings promise.

What is its own stays: the API, the statistics, the queue of waiting clients (first come, first
served). What changes is how a connection is chosen, made and given up; `docs/promises.md` says why.

One lock, psycopg_pool's `_lock`, guards the state: `_pool` (idle connections, the warmest at the
right), `_waiting`, `_slots` (one for each connection), `_attempts` (one for each being opened),
`_fault`, `_stats`. Nothing that can wait (connect, ping, close, log) runs under it. A connection
that is neither idle nor on its way to a waiting client belongs to the one thread that took it.

Invariant: slots + attempts <= `max_size`. A slot is given back only after its connection is closed,
so that the server never counts more either. What an exception interrupts is not lost: a connection
or an attempt that nobody refers to any more gives its slot back when it is garbage-collected.

psycopg_pool's private names are used in this file, in `opening.py` and in `waiting.py` alone;
`tests/pool/test_contract.py` names each one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any
from weakref import WeakSet

from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolClosed
from psycopg_pool.pool import MaintenanceTask, ShrinkPool

from abs_orm_app.pool import liveness, messages
from abs_orm_app.pool.connector import AnyConnection
from abs_orm_app.pool.constants import PING_AFTER, RETRY_INTERVAL
from abs_orm_app.pool.entry import Slot
from abs_orm_app.pool.faults import again
from abs_orm_app.pool.queue import WaitingPool

logger = logging.getLogger("abs_orm_app.pool")

PING_TIMEOUT = 5.0  # seconds; HikariCP's validationTimeout
PING_LEAST = 0.05  # seconds; in less, a connection that is well may seem to hang
LAST_WAIT = 2.0  # seconds; by then a process that has begun to end is over

TICK = 1.0  # seconds

every_pool: WeakSet[HardenedPool] = WeakSet()

# Each is called with every open pool, each `TICK` seconds in the pool's timer thread, and once with
# every pool that has just been closed. For those who watch; they must not wait for anything.
observers: list[Callable[[HardenedPool], None]] = []


class HardenedPool(WaitingPool):
    """A connection pool whose timeout, pre-ping, recycle and limits hold under faults.

    Takes psycopg_pool's parameters, and these:

    `pre_ping`: look at a connection before it is handed out (`check` is not used).
    `leak_seconds`: warn about a connection held longer, with the stack that took it; None: off, and
    no stack is recorded.
    `database`: the name of the database, for the one who keeps the pool.
    `rotating`: the password may change while the pool lives; once one has worked, a server that
    refuses it is asked again, with the one that is valid then.
    `num_workers`: how many connections are opened at a time; the threads live only that long.

    `getconn` raises `PoolTimeout` at the deadline, with the last fault as its cause;
    `psycopg.OperationalError` at once for a fault that does not pass by itself; `PoolClosed`; and
    `TooManyRequests` if `max_waiting` is set.
    """

    def __init__(
        self,
        *args: Any,
        pre_ping: bool = True,
        leak_seconds: float | None = None,
        database: str | None = None,
        open: bool = False,  # noqa: A002 - psycopg_pool's name for it
        **kwargs: Any,
    ) -> None:
        self.pre_ping = pre_ping
        self.leak_seconds = leak_seconds
        self.database = database
        self._refresh_before = float("-inf")
        self._ended = False
        super().__init__(*args, open=False, **kwargs)
        every_pool.add(self)
        if open:
            self.open()

    # Checkout

    def getconn(self, timeout: float | None = None) -> AnyConnection:
        now = monotonic()
        timeout = self.timeout if timeout is None else timeout
        deadline = now + timeout
        try:
            with self._lock:
                self._stats[self._REQUESTS_NUM] += 1
                conn = self._take_idle()
            while True:
                if conn is None:
                    conn = self._wait_for_connection(timeout, deadline)
                    now = monotonic()
                slot = self._slots[id(conn)]
                if self._is_fit(conn, slot, now, deadline):
                    conn._pool = self
                    slot.take(now)
                    if self.leak_seconds is not None:
                        slot.record_stack()
                    return conn
                with self._lock:
                    conn = self._take_idle()
                now = monotonic()
        except PoolClosed:
            self._let_the_process_end()
            raise

    def _is_fit(self, conn: AnyConnection, slot: Slot, now: float, deadline: float) -> bool:
        """Tell if `conn` may be handed out; if not, it is closed, and those that share its fate."""
        if conn._expire_at <= now or slot.opened_at <= self._refresh_before:
            self._discard([conn])
            return False
        if not self.pre_ping:
            return True
        spoken = slot.poller.poll(0)
        if not spoken and now - slot.idle_since <= PING_AFTER:
            return True
        if spoken and liveness.has_ended(conn, slot.poller):
            self._discard([conn], lost=True)
            return False
        # Half of what is left: a fresh connection, if this one hangs, needs the other half.
        allowed = min(PING_TIMEOUT, max((deadline - now) / 2, PING_LEAST))
        if liveness.answers(conn, allowed):
            return True
        self._discard([conn], lost=True)
        self._discard_suspects()
        return False

    def _discard_suspects(self) -> None:
        """Drop the idle connections due for a ping: they hang as the one does that was pinged."""
        with self._lock:
            oldest = monotonic() - PING_AFTER
            suspects = [c for c in self._pool if self._slots[id(c)].idle_since < oldest]
            for conn in suspects:
                self._pool.remove(conn)
        self._discard(suspects, lost=True)

    # Return

    def putconn(self, conn: AnyConnection) -> None:
        if conn._pool is not self:
            self._check_pool_putconn(conn)
        if self._reset or conn.pgconn.transaction_status != TransactionStatus.IDLE:
            self._clean(conn)
        else:
            self._add_to_pool(conn)

    def _clean(self, conn: AnyConnection) -> None:
        """Take back a connection that is in a transaction, or broken, or to be `reset`."""
        if not self._closed:
            self._reset_connection(conn)
        if conn.pgconn.transaction_status != TransactionStatus.UNKNOWN:
            self._add_to_pool(conn)
            return
        held = self._slots[id(conn)].release(monotonic())
        self._discard([conn])
        with self._lock:
            self._stats[self._RETURNS_BAD] += 1
            self.use_times.add(held)

    def _add_to_pool(self, conn: AnyConnection) -> None:
        """Hand `conn` to the client that has waited longest, or keep it idle, or let it go."""
        conn._pool = None
        now = monotonic()
        slot = self._slots[id(conn)]
        held = slot.release(now)
        with self._lock:
            if held:
                self.use_times.add(held)
            if (
                not self._closed
                and conn._expire_at > now
                and slot.opened_at > self._refresh_before
                and len(self._slots) <= self._max_size
            ):
                while self._waiting:
                    if self._waiting.popleft().set(conn):
                        return
                self._pool.append(conn)
                if self._pool_full_event and len(self._pool) >= self._min_size:
                    self._pool_full_event.set()
                return
        self._discard([conn])

    def _discard(self, conns: Sequence[AnyConnection], *, lost: bool = False) -> None:
        """Close connections that no one else has, give their slots back, open what is missing."""
        if not conns:
            return
        for conn in conns:
            self._hang_up(conn)
        with self._lock:
            for conn in conns:
                self._slots.pop(id(conn)).forget()
            if lost:
                self._stats[self._CONNECTIONS_LOST] += len(conns)
            attempts = self._reserve(monotonic())
        self._start_connectors(attempts)

    # Life

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Start to fill the pool to its size. Does nothing on an open pool."""
        if self._closed:
            self._let_the_process_end()
            with self._lock:
                self._open()
                attempts = self._reserve(monotonic())
            self._start_connectors(attempts)
        if wait:
            self.wait(timeout)

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[AnyConnection]:
        conn = self.getconn(timeout)
        try:
            with conn:
                yield conn
        finally:
            self.putconn(conn)

    def wait(self, timeout: float = 30.0) -> None:
        """Wait up to `timeout` seconds until the pool has its size; close it and raise if not."""
        began = monotonic()
        deadline = began + timeout
        self._check_open_getconn()
        with self._lock:
            if len(self._pool) >= self._min_size:
                return
            full = self._pool_full_event = self._pool_full_event or threading.Event()
        while not full.wait(min(RETRY_INTERVAL, max(0.0, deadline - monotonic()))):
            if monotonic() >= deadline:
                break
            self._tend(began, deadline)
        with self._lock:
            self._pool_full_event = None
            if len(self._pool) >= self._min_size:
                return
            fault = self._fault
            error = self._timeout_error(timeout)
        self.close()
        raise again(fault.error) if fault and fault.permanent else error

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the limits; what is over the new ones is closed at once or on return."""
        with self._lock:
            self._min_size, self._max_size = self._check_size(min_size, max_size)
            surplus = max(0, min(self._nconns - self._max_size, len(self._pool)))
            closing = [self._pool.popleft() for _ in range(surplus)]
            attempts = self._reserve(monotonic())
        self._start_connectors(attempts)
        self._discard(closing)

    def drain(self) -> None:
        """Replace each connection by a new one: the idle now, those in use when they come back."""
        with self._lock:
            self._refresh_before = monotonic()
            conns = list(self._pool)
            self._pool.clear()
        self._discard(conns)

    def check(self) -> None:
        """Ping each idle connection, and replace those that are expired or do not answer."""
        with self._lock:
            conns = list(self._pool)
            self._pool.clear()
        hangs = False  # the others hang as the one does that did not answer
        for conn in conns:
            if not hangs and liveness.answers(conn, PING_TIMEOUT):
                self._add_to_pool(conn)
            else:
                hangs = hangs or not conn.closed
                self._discard([conn], lost=True)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool. Those who wait get `PoolClosed`; connections in use are closed on return.

        Waits up to `timeout` seconds for connections that are just being opened.
        """
        was_open = not self._closed
        super().close(timeout)
        self.settle(timeout)
        if was_open:
            self.tell_observers()

    def settle(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for connections that are being opened, and open no more."""
        deadline = monotonic() + timeout
        self._paused = True
        while self._attempts and monotonic() < deadline:
            sleep(0.005)

    def resume(self) -> None:
        """Open again what is missing, after `settle`."""
        with self._lock:
            self._paused = False
            attempts = self._reserve(monotonic())
        self._start_connectors(attempts)

    def close_for_good(self, timeout: float) -> None:
        """At the end of the process: close, in about `timeout` seconds."""
        self._ended = True
        self.close(timeout)

    def _let_the_process_end(self) -> None:
        """Wait a little, if this is a daemon thread, which runs on for a moment.

        It then ends with the process; an error at once would only make it complain.
        """
        if self._ended and threading.current_thread() is not threading.main_thread():
            sleep(LAST_WAIT)

    def abandon(self) -> None:
        """In a forked child: forget the parent's connections without a byte on its sockets.

        Takes no lock: another thread of the parent may have held it, and is not here to release it.
        """
        self._closed = True
        self._lock = threading.RLock()
        for slot in self._slots.values():
            slot.detach()
            slot.forget()
        for conn in self._pool:
            self._hang_up(conn)
        self._pool.clear()
        self._waiting.clear()
        self._attempts.clear()

    def _start_initial_tasks(self) -> None:
        self.schedule_task(ShrinkPool(self), self.max_idle)
        self.schedule_task(Tick(self), TICK)
        if self.leak_seconds is not None:
            self.schedule_task(LeakWatch(self), self.leak_seconds / 2)

    def run_task(self, task: MaintenanceTask) -> None:
        """Run a task at once, in the timer's thread: those that are left never wait."""
        task.run()

    def _shrink_pool(self) -> None:
        """Close the overflow that was idle for the whole of the last `max_idle` seconds."""
        with self._lock:
            unused = min(self._nconns_min, self._nconns - self._min_size, len(self._pool))
            closing = [self._pool.popleft() for _ in range(unused)]
            self._nconns_min = len(self._pool)
        self._discard(closing)

    def _warn_of_leaks(self) -> None:
        """Warn, once for each checkout, of the connections held for longer than `leak_seconds`."""
        with self._lock:
            slots = [slot for slot in self._slots.values() if slot.taken_at and not slot.reported]
        for slot in slots:
            holder = slot.holder()
            if self.leak_seconds is not None and holder.seconds >= self.leak_seconds:
                slot.reported = True
                logger.warning(messages.held_too_long(self.name, holder))

    def tell_observers(self) -> None:
        """Call the observers, each in a `try`: whoever watches the pool cannot break it."""
        for observer in tuple(observers):
            try:
                observer(self)
            except Exception:
                logger.exception(messages.observer_failed(self.name))


HardenedPool.__module__ = "abs_orm_app.pool"  # its public name


class Tick(MaintenanceTask):
    """Looks for lost connections and tells the observers, again and again."""

    def _run(self, pool: ConnectionPool[Any]) -> None:
        if isinstance(pool, HardenedPool):
            pool.schedule_task(self, TICK)
            pool.replace_lost()
            pool.tell_observers()


class LeakWatch(MaintenanceTask):
    """Looks, every half `leak_seconds`, for connections that are held too long."""

    def _run(self, pool: ConnectionPool[Any]) -> None:
        if isinstance(pool, HardenedPool) and pool.leak_seconds is not None:
            pool.schedule_task(self, pool.leak_seconds / 2)
            pool._warn_of_leaks()
