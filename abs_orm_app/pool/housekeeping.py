"""One thread per process maintains all its pools. It sleeps until it is called or work is due.

It sees a pool as a `Client`. No lock guards it: a call is one addition to a dict and one release of
a lock (the bell). `Seat` decides which thread does the work: when that thread ends, or the attempt
to start it fails, the seat is free, and the next call starts another thread.
"""

from __future__ import annotations

import logging
from _thread import allocate_lock
from collections.abc import Callable
from math import inf
from threading import TIMEOUT_MAX
from time import sleep
from typing import Any, Protocol

from abs_orm_app.pool import messages, threads
from abs_orm_app.pool.clock import monotonic

logger = logging.getLogger("abs_orm_app.pool")

THREAD = "abs_orm_app-housekeeping"
TICK = 1.0  # seconds between two calls of the observers


class Client(Protocol):
    """What housekeeping maintains, from the first call until it is closed."""

    name: str
    closed: bool
    due: float  # when it is due next (`monotonic`)

    def tend(self, now: float) -> float:
        """Maintain it; return when to do so again (`monotonic`)."""

    def observed(self) -> Any:
        """The argument for the observers; None if there is nothing to observe."""

    def say(self, text: str) -> None:
        """Log a line without waiting for the log."""


class Seat:
    """Held by one thread at a time. It is free again once that thread is gone, however it ended."""

    def __init__(self) -> None:
        self._claims: dict[int, threads.Worker] = {}
        self._last = 0

    def is_taken(self) -> bool:
        claim = self._claims.get(self._last)
        return claim is not None and claim.alive

    def is_running(self) -> bool:
        """True once the thread that holds the seat has started."""
        claim = self._claims.get(self._last)
        return claim is not None and claim.running

    def claim(self) -> threads.Worker | None:
        """Take the seat, and return the worker of the thread to start; None if it is taken."""
        mine = threads.Worker()
        while True:
            number = self._last
            claim = self._claims.setdefault(number, mine)
            if claim is mine:
                return mine
            if claim.alive:
                return None
            self._last = number + 1  # a claim is never removed, so this cannot free another one


class Housekeeping:
    """Calls `tend` of each open client when asked or when due, and the observers at each tick."""

    def __init__(self) -> None:
        self.observers = Observers(self)
        self.reset()

    def reset(self) -> None:
        """In a forked child: forget the parent's thread and pools."""
        self._seat = Seat()
        self._called: dict[Client, None] = {}
        self._bell = allocate_lock()
        self._ticked_at = monotonic()
        self._paused = False
        self.clients: dict[Client, None] = {}  # those that are open; only the thread changes it

    def call(self, client: Client) -> bool:
        """Have the thread maintain this client now; False if none runs, because it is being started
        or cannot be.

        Never waits, and may be called at any point, also by a signal handler or a finalizer.
        """
        self._called[client] = None
        return self.ring()

    def pause(self, timeout: float) -> None:
        """Before a fork: end the thread, and wait up to `timeout` seconds for that.

        With gevent the thread is a greenlet, which the child would inherit and cannot end cleanly.
        """
        deadline = monotonic() + timeout
        self._paused = True
        while self.is_running() and monotonic() < deadline:
            self.ring()
            sleep(0.001)

    def resume(self) -> None:
        """After a fork, in the parent: start the thread again, and maintain all pools at once."""
        self._paused = False
        self._called.update(self.clients.copy())
        if self._called:
            self.ring()

    def is_running(self) -> bool:
        return self._seat.is_taken()

    def ring(self) -> bool:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # the bell has rung already
        seat = self._seat
        if not seat.is_taken():
            self._begin()
        return seat.is_running()

    def _begin(self) -> None:
        """Start the thread, unless another call is starting it, or a fork is in progress."""
        if self._paused:
            return
        try:
            if (worker := self._seat.claim()) is not None:
                threads.start(THREAD, self._run, self._seat, worker, worker=worker)
        except (RuntimeError, MemoryError):  # out of threads or memory, or the process is ending
            pass

    def _run(self, seat: Seat, worker: threads.Worker) -> None:
        died = True
        try:
            self._look_after_pools(seat)
            died = False
        finally:
            worker.end()  # from here on, another thread may start
            if seat is self._seat and (self._called or (died and self.clients)):
                self._begin()
                if died:
                    logger.warning(messages.housekeeping_died())

    def _look_after_pools(self, seat: Seat) -> None:
        """Maintain the pools until none is open, or until this is a forked child."""
        bell, called, clients = self._bell, self._called, self.clients
        while seat is self._seat and not self._paused:
            while called:
                client, _ = called.popitem()
                client.due = 0.0
                clients[client] = None
            now, due = monotonic(), inf
            for client in list(clients):
                if client.due <= now:
                    client.due = inf  # whatever needs it during `tend` must call again
                    client.due = _tend(client, now)
                    if client.closed and client.due == inf:
                        clients.pop(client, None)
                        continue
                due = min(due, client.due)
            client = None  # type: ignore[assignment]  # not kept alive while this thread sleeps
            if not clients:
                return
            if self.observers:
                due = min(due, self._tell_observers(now))
            left = due - monotonic()
            if left > 0 and not called:
                bell.acquire(True, left if left < TIMEOUT_MAX else -1)

    def _tell_observers(self, now: float) -> float:
        if now - self._ticked_at >= TICK:
            self._ticked_at = now
            for client in list(self.clients):
                if (pool := client.observed()) is not None:
                    self.observers.tell(pool)
        return self._ticked_at + TICK


class Observers(list["Callable[[Any], None]"]):
    """Functions that are called with every open pool at each tick, and with each closed pool once.

    For metrics. They run in the housekeeping thread, and must not wait for anything.
    """

    def __init__(self, housekeeping: Housekeeping) -> None:
        super().__init__()
        self._housekeeping = housekeeping

    def append(self, observer: Callable[[Any], None]) -> None:
        super().append(observer)
        if self._housekeeping.clients:
            self._housekeeping.ring()

    def tell(self, pool: Any) -> None:
        """Call each observer; one that raises does not affect the pool."""
        for observer in list(self):
            try:
                observer(pool)
            except Exception:
                logger.exception(messages.observer_failed(pool.name))


def _tend(client: Client, now: float) -> float:
    try:
        return client.tend(now)
    except Exception as error:  # the other pools must still be maintained
        client.say(messages.housekeeping_failed(client.name, error))
        return now + TICK


housekeeping = Housekeeping()
observers = housekeeping.observers
