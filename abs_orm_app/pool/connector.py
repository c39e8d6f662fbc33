"""How a pool opens connections: in threads of its own, many at a time, each attempt bounded.

Only the pool's own threads run this (the housekeeping thread and the connectors). No exception is
raised in them from outside, so an attempt cannot be half started.

`_lock` guards the decision how many to open (reading the counts, adding to `attempts`) and `fault`.
The thread that takes an attempt out of `attempts` decides what becomes of it: its own thread, when
it is done, or the housekeeping thread, when it takes too long. An attempt counts until then. A new
connection is counted before its attempt stops counting.
"""

from __future__ import annotations

import logging
from _thread import allocate_lock
from collections.abc import Mapping
from random import random
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from psycopg import OperationalError, ProgrammingError
from psycopg.conninfo import conninfo_to_dict, timeout_from_conninfo
from psycopg.pq import TransactionStatus

from abs_orm_app.pool import messages
from abs_orm_app.pool.constants import RETRY_INTERVAL
from abs_orm_app.pool.entry import AnyConnection, Entry, shut_down
from abs_orm_app.pool.faults import (
    Fault,
    again,
    is_about_credentials,
    is_permanent,
    without_frames,
)
from abs_orm_app.pool.growth import Situation, connections_to_open, refill_after
from abs_orm_app.pool.hosts import Hosts, Try, names_service, target_session_attrs
from abs_orm_app.pool.roles import Role, wanted_by

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

logger = logging.getLogger("abs_orm_app.pool")

PATIENCE = 2.0  # seconds that an attempt gets at least; libpq has no shorter connect_timeout
PREPARE_TIMEOUT = 10.0  # seconds for `configure`; a third of the pool's timeout if that is less
ASK_TIMEOUT = 30.0  # seconds for a function that returns the address or the password
GRACE = 1.0  # seconds that an attempt may outlast its own timeout before it is given up
JITTER = 0.05  # of max_lifetime: connections that were opened together do not expire together


class Attempt:
    """A slot taken for a connection that is being opened.

    A patient one may take the whole `connect_timeout`. `lock` guards `conn`, so that it is not
    closed while another thread shuts it down.
    """

    __slots__ = ("conn", "lock", "patient", "until")

    def __init__(self, *, patient: bool, until: float) -> None:
        self.patient = patient
        self.until = until  # `monotonic`: it is given up then
        self.conn: AnyConnection | None = None  # once it is connected
        self.lock = allocate_lock()


class Connector:
    """Opens the connections of one pool."""

    def __init__(self, pool: HardenedPool, *, parallel: int, rotating: bool) -> None:
        self.attempts: set[Attempt] = set()
        self.fault: Fault | None = None
        self.paused = False
        self._pool = pool
        self._parallel = parallel
        self._rotating = rotating
        self._lock = allocate_lock()
        self._attempted_at = float("-inf")
        self._has_connected = False
        self._hosts = Hosts()

    def tend(self, now: float) -> float:
        """Give up attempts that take too long, and start those that are missing.

        Returns when to do it again (`monotonic`).
        """
        for attempt in list(self.attempts):
            if attempt.until <= now:
                self._give_up(attempt)
        if attempts := self._reserve(now):
            self._start(attempts)
        due = min((attempt.until for attempt in list(self.attempts)), default=float("inf"))
        if self._pool.is_below_size() and not self.paused:
            due = min(due, self._retry_at(now))
        return due

    def _retry_at(self, now: float) -> float:
        """When to try again to fill the pool (`monotonic`); an attempt that ends says so itself."""
        if self._pool.until_full.waiters:
            return now + RETRY_INTERVAL
        fault = self.fault
        if not fault or fault.permanent or self.attempts:
            return float("inf")
        return self._attempted_at + refill_after(fault.at - fault.since)

    def abandon(self) -> None:
        """In a forked child: the attempts, and perhaps the lock, are the parent's."""
        self._lock = allocate_lock()
        self.attempts.clear()

    def recent_permanent_fault(self, seconds: float) -> Fault | None:
        """The fault that waiting cannot fix, if one happened in the last `seconds`."""
        fault = self.fault
        if fault and fault.permanent and monotonic() - fault.at < seconds:
            return fault
        return None

    def _situation(self, now: float) -> Situation:
        pool, fault = self._pool, self.fault
        return Situation(
            waiting=len(pool.queue.waiters),
            awaited=bool(pool.until_full.waiters),
            opening=len(self.attempts),
            open=len(pool.entries),
            size=pool.min_size,
            limit=pool.max_size,
            parallel=self._parallel,
            failing=fault is not None,
            since_attempt=now - self._attempted_at,
            refill_after=(
                refill_after(fault.at - fault.since)
                if fault and not fault.permanent
                else float("inf")
            ),
        )

    def _reserve(self, now: float) -> list[Attempt]:
        """Take slots for the connections that are missing.

        Only half of the slots are for patient attempts, so that attempts which hang do not take all
        slots for long.
        """
        with self._lock:
            if self._pool.closed or self.paused:
                return []
            count = connections_to_open(self._situation(now))
            if not count:
                return []
            patient = max(1, self._pool.max_size // 2) - sum(a.patient for a in list(self.attempts))
            until = now + ASK_TIMEOUT
            attempts = [Attempt(patient=n < patient, until=until) for n in range(count)]
            self.attempts.update(attempts)
            self._attempted_at = now
            return attempts

    def _start(self, attempts: list[Attempt]) -> None:
        """Start a thread for one of them; it starts the next."""
        name = f"{self._pool.name}-connector"
        thread = Thread(target=self._run, args=(attempts,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the process is out of threads, or about to end
            for attempt in attempts:
                self._failed(attempt, error)

    def _run(self, attempts: list[Attempt]) -> None:
        """Open connections for as long as any is missing."""
        while attempts:
            attempt = attempts.pop()
            if attempts:
                self._start(attempts)
            try:
                conn, role = self._open(attempt)
            except BaseException as error:
                self._failed(attempt, error)
                return
            if not self._admit(attempt, conn, role):
                return
            attempts = self._reserve(monotonic())
        self._hosts.ask_again()

    def _open(self, attempt: Attempt) -> tuple[AnyConnection, Role]:
        """Return a new, configured connection, and the role of its server."""
        pool, statistics = self._pool, self._pool.statistics
        statistics.connects += 1
        began = monotonic()
        try:
            conninfo = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
            kwargs = dict((pool.kwargs() if callable(pool.kwargs) else pool.kwargs) or {})
            conn = self._connect(attempt, conninfo, kwargs)
        except BaseException:
            statistics.connect_errors += 1
            raise
        took = monotonic() - began
        statistics.connect_seconds += took
        statistics.creates.add(took)
        attempt.conn = conn
        try:
            conn._pool = pool  # type: ignore[assignment]  # `with conn` does not close it
            attempt.until = monotonic() + prepare_timeout(pool.timeout)
            if pool.configure is not None:
                pool.configure(conn)
            if conn.pgconn.transaction_status != TransactionStatus.IDLE:
                raise ProgrammingError(messages.left_in_transaction(pool.name))
            return conn, pool.placement.role_of_new(conn)
        except BaseException:
            with attempt.lock:
                pool.hang_up(conn)
            raise

    def _connect(self, attempt: Attempt, conninfo: str, kwargs: Mapping[str, Any]) -> AnyConnection:
        pool = self._pool
        params = conninfo_to_dict(conninfo, **kwargs)
        wanted = target_session_attrs(params)
        in_service_file = not wanted and names_service(params)
        if not in_service_file:
            pool.placement.wanted = wanted
        timeout: float = timeout_from_conninfo(params)
        # Far more than the last one needed.
        short = min(timeout, round(max(PATIENCE, 10 * self._hosts.connect_seconds)))
        if not attempt.patient:
            timeout = short

        def connect(given: dict[str, Any]) -> AnyConnection:
            attempt.until = monotonic() + 2 * given["connect_timeout"] + GRACE
            return pool.connection_class.connect(conninfo, **{**kwargs, **given})

        attempt.until = monotonic() + ASK_TIMEOUT  # for the resolver
        how = Try(connect, AnyConnection.close, pool.placement.fits, timeout, short)
        conn = self._hosts.connect(params, how)
        if in_service_file:
            pool.placement.wanted = wanted_by(conn.pgconn)
        return conn

    def _admit(self, attempt: Attempt, conn: AnyConnection, role: Role) -> bool:
        """Give the pool the connection; False if the attempt was given up meanwhile."""
        pool = self._pool
        lifetime = pool.max_lifetime * (1 - JITTER * random())  # noqa: S311
        entry = Entry(conn, monotonic() + lifetime, pool.connection_lost)
        pool.entries.add(entry)
        pool.placement.opened(entry, role)
        try:
            self.attempts.remove(attempt)
        except KeyError:
            pool.entries.discard(entry)
            with attempt.lock:
                pool.hang_up(conn)
            return False
        self._has_connected = True
        with self._lock:
            fault, self.fault = self.fault, None
        pool.add(conn)
        if fault:
            logger.warning(messages.connected_again(pool.name, monotonic() - fault.since))
        return True

    def _give_up(self, attempt: Attempt) -> None:
        """Free the slot of an attempt that hangs, and end its session.

        Its thread sees that when it continues, if it does.
        """
        stage = "configure" if attempt.conn else "connect"
        error = OperationalError(messages.attempt_hung(self._pool.name, stage))
        with attempt.lock:
            conn = attempt.conn
            if conn is not None and not conn.closed:
                shut_down(conn)
        self._failed(attempt, error, log_here=False)

    def _failed(self, attempt: Attempt, error: BaseException, *, log_here: bool = True) -> None:
        """Free the slot. Raise the error in the waiting requests if waiting cannot fix it."""
        pool, now = self._pool, monotonic()
        try:
            self.attempts.remove(attempt)
        except KeyError:
            return  # it was given up
        bare = without_frames(error)
        permanent = is_permanent(bare, has_connected=self._has_connected)
        permanent = permanent and not self._may_be_rotating(bare)
        with self._lock:
            known = self.fault
            since = known.since if known else now
            fault = self.fault = Fault(bare, permanent, since, now)
        if permanent and not pool.has_connections_in_use():
            pool.queue.tell_all(lambda: again(bare))
            pool.until_full.tell_all(lambda: again(bare))
        pool.call_housekeeping()
        if known is None or str(known.error) != str(bare):
            text = messages.cannot_connect(pool.name, fault)
            if log_here:
                logger.warning(text)
            else:
                pool.say(text)
        before = known.at - since if known else -1.0
        if log_here and before < pool.reconnect_timeout <= now - since:
            pool.reconnect_failed()

    def _may_be_rotating(self, error: Exception) -> bool:
        """True if a password that has worked may be changing now, here or on the server."""
        return self._rotating and self._has_connected and is_about_credentials(error)


def prepare_timeout(timeout: float) -> float:
    """Seconds that `configure` and `reset` may take in a pool with this timeout."""
    return max(PATIENCE, min(PREPARE_TIMEOUT, timeout / 3))
