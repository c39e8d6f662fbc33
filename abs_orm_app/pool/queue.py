"""How a client waits for a connection: in the queue, tending the pool meanwhile.

The state and its lock are described in `pool.py`.
"""

from __future__ import annotations

import gc
from time import monotonic
from typing import Any

from psycopg_pool import PoolTimeout, TooManyRequests
from psycopg_pool.pool import WaitingClient

from abs_orm_app.pool import messages
from abs_orm_app.pool.connector import AnyConnection, OpeningPool
from abs_orm_app.pool.constants import RETRY_INTERVAL
from abs_orm_app.pool.faults import again

COLLECT_AFTER = 1.0  # seconds that a client has waited when it looks for garbage
COLLECT_INTERVAL = 30.0  # seconds between two such looks
TIMEOUTS = "requests_timeouts"  # a counter beside psycopg_pool's: errors that were timeouts


class WaitingPool(OpeningPool):
    """A pool whose waiting clients see to it that what they wait for can come."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._collected_at = float("-inf")
        self._collect_seconds = 0.0
        super().__init__(*args, **kwargs)

    def _take_idle(self) -> AnyConnection | None:
        """Return the idle connection that was used last, or None. Call with the lock held."""
        if self._closed:
            self._check_open_getconn()
        if not self._pool:
            return None
        conn = self._pool.pop()
        if len(self._pool) < self._nconns_min:
            self._nconns_min = len(self._pool)
        return conn

    def _wait_for_connection(self, timeout: float, deadline: float) -> AnyConnection:
        began = monotonic()
        self._reclaim_lost()
        with self._lock:
            if conn := self._take_idle():
                return conn
            self._refuse_if_hopeless(began, timeout, deadline)
            client = Client()
            self._waiting.append(client)
            self._stats[self._REQUESTS_QUEUED] += 1
            attempts = self._reserve(began)
        try:
            self._start_connectors(attempts)
            interval = min(RETRY_INTERVAL, timeout / 4)
            while not client.served(min(interval, deadline - monotonic())):
                self._tend(began, deadline)
                if monotonic() >= deadline:
                    client.fail(self._timeout_error(timeout))
            return client.result()
        except BaseException:
            # An error of the pool, KeyboardInterrupt, a cancelled greenlet: a connection that came
            # in the meantime goes to the next.
            if conn := client.give_up():
                self._add_to_pool(conn)
            with self._lock:
                self._stats[self._REQUESTS_ERRORS] += 1
                if client in self._waiting:
                    self._waiting.remove(client)
            raise
        finally:
            with self._lock:
                waited = monotonic() - began
                self._stats[self._REQUESTS_WAIT_MS] += round(1000 * waited)
                self.wait_times.add(waited)

    def _refuse_if_hopeless(self, now: float, timeout: float, deadline: float) -> None:
        """Raise instead of waiting, where waiting is of no use. Call with the lock held."""
        fault = self._fault
        error: Exception | None = None
        if fault and fault.permanent and now - fault.at < RETRY_INTERVAL and not self._in_use():
            error = again(fault.error)
        elif deadline <= now:
            error = self._timeout_error(timeout)
        elif self.max_waiting and len(self._waiting) >= self.max_waiting:
            error = TooManyRequests(messages.too_many_requests(self.name, len(self._waiting)))
        if error:
            self._stats[self._REQUESTS_ERRORS] += 1
            raise error

    def _tend(self, began: float, deadline: float) -> None:
        """What a waiting client does meanwhile: retry a failed connect, find lost connections.

        The clients do it themselves, so that it depends on no thread that may have died.
        """
        self._reclaim_lost()
        now = monotonic()
        with self._lock:
            attempts = self._reserve(now)
            in_time = now + 3 * self._collect_seconds < deadline
            collect = in_time and self._garbage_is_suspected(now, began)
            if collect:
                self._collected_at = now
        self._start_connectors(attempts)
        if collect:
            gc.collect()
            self._collect_seconds = monotonic() - now
            self.replace_lost()

    def _garbage_is_suspected(self, now: float, began: float) -> bool:
        """Tell if all connections are out, and some may be held by garbage. With the lock held.

        Django's connection wrapper is a cycle: when its thread ends, only the garbage collector
        frees it, and the connection that it holds. A collection stops the whole process for a
        moment, so each ended thread is a reason for one only, and otherwise it takes a long wait.
        """
        if self._in_use() < self._max_size:
            return False
        orphans = [s for s in self._slots.values() if s.is_orphaned() and not s.examined]
        for slot in orphans:
            slot.examined = True
        waits_long = now - began > COLLECT_AFTER and now - self._collected_at > COLLECT_INTERVAL
        return bool(orphans) or waits_long

    def _timeout_error(self, timeout: float) -> PoolTimeout:
        with self._lock:
            self._stats[TIMEOUTS] += 1
            fault = self._fault
            text = messages.pool_timeout(
                self.name,
                timeout,
                self.get_stats(),
                len(self._attempts),
                self.holders(),
                fault,
            )
        error = PoolTimeout(text)
        error.__cause__ = fault.error if fault else None
        return error


class Client(WaitingClient[AnyConnection]):
    """A place in the queue that can be waited on in steps. Its own lock, `_cond`, guards it."""

    def served(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds; True once there is a connection or an error."""
        with self._cond:
            if not (self.conn or self.error) and timeout > 0:
                self._cond.wait(timeout)
            return bool(self.conn or self.error)

    def result(self) -> AnyConnection:
        """Return the connection that was served, or raise the error. Once only."""
        with self._cond:
            if self.conn is None:
                raise self.error or PoolTimeout()
            conn, self.conn, self.error = self.conn, None, PoolTimeout()
            return conn

    def give_up(self) -> AnyConnection | None:
        """Take no more; return the connection that had come but was not taken, if any."""
        with self._cond:
            conn, self.conn, self.error = self.conn, None, self.error or PoolTimeout()
            return conn
