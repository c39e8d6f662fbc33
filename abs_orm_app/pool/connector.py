"""Opens a pool's connections: in its own threads, many at a time, each attempt with a time limit.

Only the pool's own threads run this (housekeeping and the connectors). No exception is raised in
them from outside, so an attempt cannot be half started.

`_lock` guards the decision how many to open (reading the counts, adding to `attempts`) and `fault`.
The thread that removes an attempt from `attempts` decides its outcome: its own thread when it is
done, or the housekeeping thread when it takes too long or its thread is gone. An attempt counts
until then. A new connection is counted before its attempt stops counting.
"""

from __future__ import annotations

import logging
import socket
from _thread import allocate_lock
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import inf
from random import random
from typing import Any

import psycopg
from psycopg import OperationalError, ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ConnectionTimeout
from psycopg.pq import TransactionStatus

from abs_orm_app.pool import messages, threads
from abs_orm_app.pool.causes import Spell, located
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.closing import CANCEL_TIMEOUT, cancel_handle
from abs_orm_app.pool.core import Core
from abs_orm_app.pool.entry import AnyConnection, Entry, shut_down, twin_of
from abs_orm_app.pool.growth import (
    NEAR,
    PASSWORD_RETRY_MOST,
    RETRY_INTERVAL,
    ROTATION_RETRY_MOST,
    Situation,
    connections_to_open,
    refill_after,
    retry_after,
)
from abs_orm_app.pool.hosts import Address, Hosts, Try
from abs_orm_app.pool.placement import Placement
from abs_orm_app.pool.returning import prepare_timeout
from abs_orm_app.pool.roles import Role, made_with, wanted_by
from abs_orm_app.pool.server_errors import (
    Fault,
    again,
    is_about_credentials,
    is_permanent,
    without_frames,
)
from abs_orm_app.pool.spoiled import guarded

logger = logging.getLogger("abs_orm_app.pool")

PATIENCE = 2.0  # minimum seconds for an attempt; libpq has no shorter connect_timeout
PATIENT_EVERY = 30.0  # seconds between two patient attempts if only one slot is left
SOURCE_TIMEOUT = 30.0  # seconds that a function may take to return the address or the password
OVERDUE = 1.0  # seconds past its own timeout after which an attempt is given up
JITTER = 0.05  # of max_lifetime: connections that were opened together do not expire together


class Attempt:
    """A slot reserved for a connection that is being opened.

    A `patient` attempt may take the whole `connect_timeout`; a `stubborn` one may do so even at a
    dead host after another host has answered. `given`: the address and parameters that it tries.
    `twin`: a second descriptor of the socket, once connected; any thread may shut it down.
    """

    __slots__ = (
        "began",
        "cancelled",
        "given",
        "patient",
        "pgconn",
        "stubborn",
        "thread",
        "twin",
        "until",
    )

    def __init__(self, *, patient: bool, until: float, stubborn: bool = True) -> None:
        self.patient, self.stubborn = patient, patient and stubborn
        self.until = until  # when it is given up (`monotonic`)
        self.given: tuple[str, dict[str, Any]] | None = None
        self.began = inf  # when it started to connect to the server that it has reached
        self.twin: socket.socket | None = None
        self.pgconn: Any = None  # once it is connected
        self.cancelled = False  # True once the statement of `configure` was cancelled
        self.thread: threads.Worker | None = None


class Source:
    """What a pool makes its connections from: psycopg_pool's parameters of the same names."""

    def __init__(
        self,
        conninfo: str | Callable[[], str],
        connection_class: type[AnyConnection],
        kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None,
        configure: Callable[[AnyConnection], object] | None,
        *,
        max_lifetime: float,
        reconnect_timeout: float,
        reconnect_failed: Callable[[Any], object] | None,
        num_workers: int,
    ) -> None:
        self.conninfo, self.kwargs, self.configure = conninfo, kwargs, configure
        self.connection_class = guarded(connection_class)
        self.max_lifetime, self.reconnect_timeout = max_lifetime, reconnect_timeout
        self.reconnect_failed, self.parallel = reconnect_failed, num_workers

    def address(self) -> str:
        return self.conninfo() if callable(self.conninfo) else self.conninfo

    def parameters(self) -> dict[str, Any]:
        return dict((self.kwargs() if callable(self.kwargs) else self.kwargs) or {})


class Connector:
    """Opens the connections of one pool."""

    def __init__(self, core: Core, source: Source, placement: Placement) -> None:
        self._core, self._source, self._placement = core, source, placement
        self._lock = allocate_lock()
        self._attempted_at = self._patient_at = -inf
        self._spell = Spell()
        self._has_connected = False
        self._refused_since = inf  # since when the password has been refused
        self._refused: Any = None  # the parameters with it, if it is read from a file,
        self._refused_until = -inf  # and when to try them again
        self._told = -inf  # the start of the last outage that `reconnect_failed` was called for
        self._last_parsed: tuple[str, Mapping[str, Any], Address] | None = None
        self._hosts = Hosts()

    def tend(self, now: float) -> tuple[float, float]:
        """Give up attempts that take too long, and start those that are missing.

        Returns when to run again (`monotonic`): a time that `upkeep.PAUSE` may delay, and one that
        it may not.
        """
        core = self._core
        for attempt in list(core.attempts):
            if _is_abandoned(attempt) or (attempt.until <= now and not self._cancels(attempt, now)):
                self._give_up(attempt)
        if attempts := self._reserve(now):
            self._start(attempts)
        due = min((attempt.until for attempt in list(core.attempts)), default=inf)
        if core.attempts:
            due = min(due, now + RETRY_INTERVAL)  # a thread may end without reporting it
        if core.is_below_size() and not core.paused:
            due = min(due, self._retry_at(now))
        first_is_due = self._attempted_at + NEAR  # after that, the server is not near: open more
        is_first = self._hosts.fastest == inf and core.fault is None and core.queue.waiters
        soon = first_is_due if is_first and now < first_is_due else inf
        return min(due, self._tell_that_it_fails(now)), soon

    def _tell_that_it_fails(self, now: float) -> float:
        """Call `reconnect_failed` once an outage has lasted long enough; return when that is."""
        core = self._core
        fault, pool = core.fault, core.pool()
        if fault is None or pool is None or fault.since == self._told:
            return inf
        due = fault.since + self._source.reconnect_timeout
        if now < due:
            return due
        if not (core.is_below_size() or core.queue.waiters):
            return inf  # no attempts are being made
        with suppress(RuntimeError, MemoryError):
            threads.start(f"{core.name}-reconnect", pool.reconnect_failed)
            self._told = fault.since
        return now + RETRY_INTERVAL

    def _retry_at(self, now: float) -> float:
        """When to retry filling the pool (`monotonic`); a running attempt reports its own end."""
        core = self._core
        if core.until_full.waiters:
            return now + RETRY_INTERVAL
        fault = core.fault or core.refusal
        if not fault or fault.permanent or core.attempts:
            return inf
        return self._attempted_at + refill_after(fault.at - fault.since)

    def abandon(self) -> None:
        """In a forked child: drop the parent's attempts, and its lock, which may be locked."""
        self._lock = allocate_lock()
        self._core.attempts.clear()

    def _situation(self, now: float) -> Situation:
        core = self._core
        fault = core.fault or core.refusal
        return Situation(
            waiting=len(core.queue.waiters),
            awaited=bool(core.until_full.waiters),
            opening=len(core.attempts),
            open=len(core.entries),
            size=core.min_size,
            limit=core.max_size - core.inherited,
            parallel=self._source.parallel,
            fastest=self._hosts.fastest,
            failing=fault is not None,
            since_attempt=now - self._attempted_at,
            retry_after=fault.retry_after if fault else RETRY_INTERVAL,
            refill_after=(
                refill_after(fault.at - fault.since) if fault and not fault.permanent else inf
            ),
        )

    def _reserve(self, now: float) -> list[Attempt]:
        """Reserve slots for the missing connections."""
        core = self._core
        with self._lock:
            if core.closed or core.paused:
                return []
            count = connections_to_open(self._situation(now))
            if count <= 0:
                return []
            slots, stubborn = self._patient_slots(now)
            patient = slots - sum(a.patient for a in list(core.attempts))
            self._patient_at = now if patient > 0 else self._patient_at
            until = now + SOURCE_TIMEOUT
            attempts = [
                Attempt(patient=n < patient, until=until, stubborn=stubborn) for n in range(count)
            ]
            core.attempts.update(attempts)
            self._attempted_at = now
            return attempts

    def _patient_slots(self, now: float) -> tuple[int, bool]:
        """Return how many attempts may be patient, and whether those are stubborn: half of the free
        slots, so that hanging attempts do not take all of them for long.

        If only one is free, it is patient; but while a host is dead, only now and then, and then
        stubborn, because that host may just be slow.
        """
        core = self._core
        slots = (core.max_size - core.inherited - len(core.entries)) // 2
        any_dead = self._hosts.any_dead
        rarely = any_dead and now - self._patient_at < PATIENT_EVERY
        return (slots, True) if slots else (int(not rarely), any_dead)

    def _start(self, attempts: list[Attempt]) -> None:
        """Start a thread for one of the attempts; that thread starts the next one."""
        worker = threads.Worker()
        for attempt in attempts:
            attempt.thread = worker
        try:
            threads.start(f"{self._core.name}-connector", self._run, attempts, worker=worker)
        except (RuntimeError, MemoryError) as error:  # out of threads, or the process is ending
            for attempt in attempts:
                self._failed(attempt, error)

    def _run(self, attempts: list[Attempt]) -> None:
        """Open connections as long as any are missing."""
        while attempts:
            attempt = attempts.pop()
            if attempts:
                self._start(attempts)
            try:
                conn, role = self._open(attempt)
            except BaseException as error:
                self._failed(attempt, self._located(error))
                return
            if not self._admit(attempt, conn, role):
                return
            attempts = self._reserve(monotonic())
            for another in attempts:
                another.thread = attempt.thread
        self._hosts.ask_again()

    def _open(self, attempt: Attempt) -> tuple[AnyConnection, Role]:
        """Return a new, configured connection, and the role of its server."""
        core, source, statistics = self._core, self._source, self._core.statistics
        given = self._given()
        if (error := self._refusal_of(given)) is not None:
            raise error
        attempt.given = given
        statistics.connects += 1
        began = monotonic()
        try:
            conn = self._connect(attempt, *given)
        except BaseException:
            statistics.connect_errors += 1
            raise
        took = monotonic() - began
        statistics.connect_seconds += took
        statistics.creates.add(took)
        try:
            conn._pool = core  # type: ignore[assignment]  # `with conn` does not close it
            attempt.twin, attempt.pgconn = twin_of(conn), conn.pgconn
            attempt.until = monotonic() + prepare_timeout(core.timeout)
            if source.configure is not None:
                self._configure(source.configure, conn)
            if attempt.cancelled:
                raise OperationalError(messages.attempt_hung(core.name, "configure"))
            if conn.pgconn.transaction_status != TransactionStatus.IDLE:
                raise ProgrammingError(messages.left_in_transaction(core.name))
            return conn, self._placement.role_of_new(conn)
        except BaseException:
            _close(conn, attempt)
            raise

    def _given(self) -> tuple[str, dict[str, Any]]:
        """Return the address and the parameters. Their source may fail for a moment."""
        try:
            return self._source.address(), self._source.parameters()
        except Exception as error:
            self._core.statistics.connects += 1
            self._core.statistics.connect_errors += 1
            if not self._has_connected or isinstance(error, psycopg.Error | OSError):
                raise
            raise RuntimeError(messages.source_failed(self._core.name, error)) from error

    def _refusal_of(self, given: tuple[str, dict[str, Any]]) -> Exception | None:
        """Return an error if this password was refused and it is too early to retry it."""
        fault = self._core.fault
        if fault is None or not is_about_credentials(fault.error):
            return None
        early = given == self._refused and monotonic() < self._refused_until
        return again(fault.error) if early else None

    def _configure(self, configure: Callable[[AnyConnection], object], conn: AnyConnection) -> None:
        try:
            configure(conn)
        except psycopg.Error:
            raise
        except Exception as error:
            text = messages.configure_failed(self._core.name, error)
            raise OperationalError(text) from error

    def _connect(self, attempt: Attempt, conninfo: str, kwargs: Mapping[str, Any]) -> AnyConnection:
        placement, source = self._placement, self._source
        address = self._parsed(conninfo, kwargs)
        if not address.in_service_file:
            placement.wanted, placement.spreads = address.wanted, address.spreads
        self._core.places = address.places
        timeout = address.timeout
        # Much longer than the last one needed.
        short = min(timeout, round(max(PATIENCE, 10 * self._hosts.connect_seconds)))
        if not attempt.patient:
            timeout = short

        def connect(given: dict[str, Any]) -> AnyConnection:
            if attempt not in self._core.attempts:
                raise RuntimeError("the attempt was given up")
            attempt.began = monotonic()
            attempt.until = attempt.began + 2 * given["connect_timeout"] + OVERDUE
            conn: AnyConnection = source.connection_class.connect(conninfo, **{**kwargs, **given})
            return conn

        attempt.until = monotonic() + timeout + OVERDUE  # for resolving the names
        how = Try(connect, AnyConnection.close, placement.fits, timeout, short, attempt.stubborn)
        conn = self._hosts.connect(address, how)
        if address.in_service_file:
            placement.wanted = address.wanted or wanted_by(conn.pgconn)
            placement.spreads = made_with(conn.pgconn, b"load_balance_hosts") == "random"
        return conn

    def _parsed(self, conninfo: str, kwargs: Mapping[str, Any]) -> Address:
        """Parse the parameters; reuse the last result if they have not changed."""
        last = self._last_parsed
        if last is None or conninfo != last[0] or kwargs != last[1]:
            address = Address(conninfo_to_dict(conninfo, **kwargs))
            last = self._last_parsed = conninfo, dict(kwargs), address
        return last[2]

    def _admit(self, attempt: Attempt, conn: AnyConnection, role: Role) -> bool:
        """Give the pool the connection; False if the attempt was given up meanwhile."""
        core = self._core
        lifetime = self._source.max_lifetime * (1 - JITTER * random())  # noqa: S311
        assert attempt.twin is not None  # noqa: S101 - `_open` has set it
        entry = Entry(conn, attempt.twin, monotonic() + lifetime, core.lost)
        core.entries.add(entry)
        self._placement.opened(entry, role, attempt.began, any_dead=self._hosts.any_dead)
        try:
            core.attempts.remove(attempt)
            given_up = attempt.cancelled  # its cancel request could hit the holder's statement
        except KeyError:
            given_up = True
        if given_up:
            core.entries.discard(entry)
            _close(conn, attempt)
            core.call_housekeeping()
            return False
        self._has_connected = True
        with self._lock:
            fault, core.fault = core.fault, None
        core.add(conn)
        if fault and self._spell.ends():
            logger.warning(messages.connected_again(core.name, monotonic() - fault.since))
        return True

    def _cancels(self, attempt: Attempt, now: float) -> bool:
        """Cancel what `configure` is executing; the attempt's thread then frees the slot."""
        if attempt.cancelled or attempt.pgconn is None:
            return False
        attempt.cancelled = True  # first: `_admit` removes the attempt and then checks this
        if attempt not in self._core.attempts:
            return True
        if (cancel := cancel_handle(attempt.pgconn)) is None:
            return False
        attempt.until = now + CANCEL_TIMEOUT
        self._core.closer.send(cancel)
        return True

    def _give_up(self, attempt: Attempt) -> None:
        """Free the slot of an attempt that hangs, or whose thread is gone, and end its session.

        If its thread continues later, it notices that.
        """
        if _is_abandoned(attempt):
            error: Exception = MemoryError(messages.thread_gone())
        else:
            stage = "configure" if attempt.twin else "connect"
            error = OperationalError(messages.attempt_hung(self._core.name, stage))
        self._failed(attempt, error, log_here=False)

    def _failed(self, attempt: Attempt, error: BaseException, *, log_here: bool = True) -> None:
        """Free the slot. Raise the error in the waiting requests if waiting cannot fix it."""
        core, now = self._core, monotonic()
        try:
            core.attempts.remove(attempt)
        except KeyError:
            return  # it was given up, or has become a connection
        if attempt.twin is not None:
            shut_down(attempt.twin)
        bare = without_frames(error)
        permanent = is_permanent(bare, has_connected=self._has_connected)
        permanent = permanent and not self._may_be_rotating(bare)
        with self._lock:
            known = core.fault
            since = known.since if known else now
            delay = RETRY_INTERVAL
            if is_about_credentials(bare):
                delay = self._delay(attempt, known, now, permanent=permanent)
            fault = Fault(bare, permanent, since, now, delay)
            core.fault = fault
        if permanent and not core.in_use:
            core.queue.tell_all(lambda: again(bare))
            core.until_full.tell_all(lambda: again(bare))
        core.call_housekeeping()
        text = messages.cannot_connect(core.name, fault)
        if self._spell.is_news(text):
            if log_here:
                logger.warning(text)
            else:
                core.say(text)

    def _located(self, error: BaseException) -> BaseException:
        bare = without_frames(error)  # also those of an error that is replaced below
        return located(bare, self._core.places) if isinstance(bare, ConnectionTimeout) else bare

    def _delay(
        self, attempt: Attempt, known: Fault | None, now: float, *, permanent: bool
    ) -> float:
        """Return the seconds until the next attempt, after this one's password was refused.

        A file is read again sooner, and a new password in it is tried at once. A provider is not
        asked sooner: it may be slow, and may return a new token each time. Other passwords do not
        change, or only libpq reads them (`passfile`).
        """
        in_file = self._core.hooks.in_file
        changed = in_file and attempt.given not in (None, self._refused)
        if known is None or not is_about_credentials(known.error) or changed:
            self._refused_since = now
        most = PASSWORD_RETRY_MOST if permanent else ROTATION_RETRY_MOST
        delay = retry_after(now - self._refused_since, most)
        if not in_file:
            return delay
        if attempt.given is not None:
            self._refused, self._refused_until = attempt.given, now + delay
        return RETRY_INTERVAL

    def _may_be_rotating(self, error: Exception) -> bool:
        """True if a password that has worked may be changing now, here or on the server."""
        return self._core.hooks.rotating and self._has_connected and is_about_credentials(error)


def _is_abandoned(attempt: Attempt) -> bool:
    """True if its thread is gone."""
    return attempt.thread is not None and not attempt.thread.alive


def _close(conn: AnyConnection, attempt: Attempt) -> None:
    """Close a connection that does not become part of the pool."""
    conn._pool = None
    conn.close()
    if attempt.twin is not None:
        attempt.twin.close()
