"""How the pool opens connections: many at a time, and again for as long as somebody waits.

The state and its lock are described in `pool.py`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from time import monotonic
from typing import Any
from weakref import WeakSet

from psycopg import Connection, ProgrammingError
from psycopg.conninfo import conninfo_to_dict, timeout_from_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool
from psycopg_pool.pool import WaitingClient

from abs_orm_app.pool import messages
from abs_orm_app.pool.constants import RETRY_INTERVAL
from abs_orm_app.pool.entry import Holder, Slot
from abs_orm_app.pool.faults import Fault, again, is_about_credentials, is_permanent
from abs_orm_app.pool.histogram import Histogram, Timings

logger = logging.getLogger("abs_orm_app.pool")

AnyConnection = Connection[Any]

POOL_OPENING = "pool_opening"  # a number beside psycopg_pool's: connections being opened
PATIENCE = 2.0  # seconds that an attempt gets at least; libpq knows no shorter connect_timeout
PARALLEL_CONNECTS = 16  # `num_workers`: connections opened at a time for clients that wait
REFILL = 2  # connections opened at a time when nobody waits


class Attempt:
    """A slot taken for a connection that is being opened.

    It counts for as long as somebody refers to it: an attempt that was interrupted before its
    thread began (KeyboardInterrupt, a soft time limit) gives its slot back by itself.

    A patient one may take the whole `connect_timeout`.
    """

    def __init__(self, *, patient: bool) -> None:
        self.patient = patient


class OpeningPool(ConnectionPool[AnyConnection]):
    """A pool that opens connections in threads of their own, which end when nothing is missing."""

    def __init__(
        self,
        *args: Any,
        num_workers: int = PARALLEL_CONNECTS,
        rotating: bool = False,
        **kwargs: Any,
    ) -> None:
        self.rotating = rotating
        self._slots: dict[int, Slot] = {}
        self._attempts: WeakSet[Attempt] = WeakSet()
        self._lost: deque[Slot] = deque()
        self._attempted_at = float("-inf")
        self._fault: Fault | None = None
        self._has_connected = False
        self._connect_seconds = 0.0  # that the last connection took to open
        self._paused = False
        self._usage_popped = 0.0
        self.wait_times, self.use_times, self.create_times = Histogram(), Histogram(), Histogram()
        super().__init__(*args, num_workers=num_workers, **kwargs)
        self._lock = threading.RLock()

    @property
    def _nconns(self) -> int:
        return len(self._slots) + len(self._attempts)

    @_nconns.setter
    def _nconns(self, value: int) -> None:
        """psycopg_pool keeps a counter, and sets it once; here the count cannot be wrong."""

    def _reserve(self, now: float) -> list[Attempt]:
        """Take slots for the connections that are missing. Call with the lock held.

        Missing are those that somebody waits for, all at once, and those up to the pool size, a few
        at a time, since the requests of that moment need the processors more. After a fault, and
        when an attempt takes long, one more is made at each interval while somebody waits: the
        network may be back for the new one. So that attempts which hang do not take all slots for
        long, only half of the slots are for patient ones.
        """
        if self._closed or self._paused:
            return []
        opening = len(self._attempts)
        filling = self.num_workers if self._pool_full_event else REFILL
        for_clients = min(len(self._waiting), self.num_workers) - opening
        for_size = min(self._min_size - self._nconns, filling - opening)
        missing = 0 if self._fault else max(for_clients, for_size)
        awaited = bool(self._waiting or self._pool_full_event)
        if awaited and now - self._attempted_at >= RETRY_INTERVAL:
            missing = max(missing, 1)
        missing = min(missing, self._max_size - self._nconns)
        if missing <= 0:
            return []
        patient = max(1, self._max_size // 2) - sum(each.patient for each in self._attempts)
        attempts = [Attempt(patient=number < patient) for number in range(missing)]
        self._attempts.update(attempts)
        self._attempted_at = now
        return attempts

    def _start_connectors(self, attempts: list[Attempt]) -> None:
        """Start a thread for each attempt. Call without the lock."""
        if attempts:
            self._keep_timer_alive()
        while attempts:
            attempt = attempts.pop()
            thread = threading.Thread(
                target=self._run_connector,
                args=(attempt,),
                name=f"{self.name}-connector",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError as error:  # the process is out of threads, or about to end
                self._connect_failed(attempt, error)

    def _run_connector(self, attempt: Attempt) -> None:
        """Open connections for as long as any is missing."""
        attempts = [attempt]
        while attempts:
            attempt = attempts.pop()
            self._start_connectors(attempts)
            try:
                conn = self._connect(None if attempt.patient else self._patience())
            except Exception as error:
                self._connect_failed(attempt, error)
                return
            self._admit(attempt, conn)
            with self._lock:
                attempts = self._reserve(monotonic())

    def _connect(self, timeout: float | None = None) -> AnyConnection:
        """Return a new, configured connection, within `timeout` seconds if `connect_timeout` is
        longer.
        """
        began = monotonic()
        try:
            conninfo = self.conninfo() if callable(self.conninfo) else self.conninfo
            kwargs = dict(self.kwargs() if callable(self.kwargs) else self.kwargs or {})
            if timeout is not None:
                given = timeout_from_conninfo(conninfo_to_dict(conninfo, **kwargs))
                kwargs["connect_timeout"] = min(given, round(timeout))
            conn = self.connection_class.connect(conninfo, **kwargs)
        except BaseException:
            with self._lock:
                self._stats[self._CONNECTIONS_NUM] += 1
                self._stats[self._CONNECTIONS_ERRORS] += 1
            raise
        with self._lock:
            self._stats[self._CONNECTIONS_NUM] += 1
            took = monotonic() - began
            self._connect_seconds = took
            self._stats[self._CONNECTIONS_MS] += round(1000 * took)
            self.create_times.add(took)
        try:
            self._prepare(conn)
        except BaseException:
            self._hang_up(conn)
            raise
        return conn

    def _patience(self) -> float:
        """Seconds for an attempt that is not a patient one: far more than the last one needed."""
        return max(PATIENCE, 10 * self._connect_seconds)

    def _prepare(self, conn: AnyConnection) -> None:
        conn._pool = self
        if self._configure:
            self._configure(conn)
        if conn.pgconn.transaction_status != TransactionStatus.IDLE:
            raise ProgrammingError(messages.left_in_transaction(self.name))
        self._set_connection_expiry_date(conn)

    def _hang_up(self, conn: AnyConnection) -> None:
        conn._pool = None
        conn.close()

    def _admit(self, attempt: Attempt, conn: AnyConnection) -> None:
        """Give a new connection its slot, and the pool the connection."""
        slot = Slot(conn, self._lost)
        with self._lock:
            self._attempts.discard(attempt)
            self._slots[slot.key] = slot
            self._has_connected = True
            fault, self._fault = self._fault, None
        if fault:
            logger.warning(messages.connected_again(self.name, monotonic() - fault.since))
        self._add_to_pool(conn)

    def _connect_failed(self, attempt: Attempt, error: Exception) -> None:
        """Give the slot back. Tell those who wait, if waiting is of no use."""
        now = monotonic()
        doomed: list[WaitingClient[AnyConnection]] = []
        with self._lock:
            self._attempts.discard(attempt)
            known = self._fault
            since = known.since if known else now
            permanent = is_permanent(error) and not self._may_be_rotating(error)
            fault = self._fault = Fault(error, permanent, since, now)
            if fault.permanent and not self._in_use():
                doomed.extend(self._waiting)
                self._waiting.clear()
                if self._pool_full_event:
                    self._pool_full_event.set()
        if known is None or str(known.error) != str(fault.error):
            logger.warning(messages.cannot_connect(self.name, fault))
        for client in doomed:
            client.fail(again(fault.error))
        before = known.at - since if known else -1.0
        if before < self.reconnect_timeout <= now - since:
            self.reconnect_failed()

    def _may_be_rotating(self, error: Exception) -> bool:
        """True if a password that has worked is just being changed, here or on the server."""
        return self.rotating and self._has_connected and is_about_credentials(error)

    def _reclaim_lost(self) -> None:
        """Take back the slots of connections that were garbage-collected while checked out."""
        while self._lost:
            slot = self._lost.popleft()
            with self._lock:
                known = self._slots.get(slot.key) is slot
                if known:
                    del self._slots[slot.key]
                    self._stats[self._CONNECTIONS_LOST] += 1
            if known:
                logger.warning(messages.connection_lost(self.name, slot.holder()))

    def replace_lost(self) -> None:
        """Take back the slots of lost connections, and open what is missing then."""
        if self._lost:
            self._reclaim_lost()
            with self._lock:
                attempts = self._reserve(monotonic())
            self._start_connectors(attempts)

    def _start_workers(self) -> None:
        name = f"{self.name}-timer"
        self._sched_runner = threading.Thread(target=self._sched.run, name=name, daemon=True)
        self._sched_runner.start()

    def _keep_timer_alive(self) -> None:
        """Start psycopg_pool's timer thread again if it has died.

        It closes overflow that is not needed, and there is none without a new connection: where one
        is opened is the place where its absence would matter.
        """
        with self._lock:
            timer = self._sched_runner
            died = timer is not None and not timer.is_alive() and not self._closed
            if died:
                self._start_workers()
        if died:
            logger.warning(messages.timer_died(self.name))

    def _in_use(self) -> int:
        return len(self._slots) - len(self._pool)

    def holders(self) -> list[Holder]:
        """Who has a connection checked out, the longest first."""
        with self._lock:
            holders = [slot.holder() for slot in self._slots.values() if slot.taken_at]
        return sorted(holders, key=lambda holder: holder.seconds, reverse=True)

    def get_stats(self) -> dict[str, int]:
        """Return psycopg_pool's statistics, and `pool_opening`: connections being opened.

        `usage_ms` counts `getconn`/`putconn` too.
        """
        with self._lock:
            return {**super().get_stats(), **self._own_stats()}

    def pop_stats(self) -> dict[str, int]:
        """Return the statistics and set the counters to zero."""
        with self._lock:
            stats = {**super().pop_stats(), **self._own_stats()}
            self._usage_popped = self.use_times.total
            return stats

    def _own_stats(self) -> dict[str, int]:
        usage = round(1000 * (self.use_times.total - self._usage_popped))
        return {self._USAGE_MS: usage, POOL_OPENING: len(self._attempts)}

    def timings(self) -> Timings:
        """How long clients waited and held, and connecting took, since the pool was made."""
        with self._lock:
            return Timings(
                waits=self.wait_times.distribution(),
                uses=self.use_times.distribution(),
                creates=self.create_times.distribution(),
            )
