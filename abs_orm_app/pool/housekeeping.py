"""One thread per process maintains all its pools. It sleeps until it is called or work is due.

No lock guards it: a call is one addition to a set and one release of a lock (the bell). The right
to be the thread is an object, `_Turn`, of which there is one: anything that ends the thread, or the
attempt to start it, drops the turn, and the next call starts another thread.
"""

from __future__ import annotations

import logging
from _thread import allocate_lock, start_new_thread
from collections import deque
from collections.abc import Callable
from math import inf
from threading import TIMEOUT_MAX, Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING
from weakref import WeakSet

from abs_orm_app.pool import messages
from abs_orm_app.pool.constants import RETRY_INTERVAL
from abs_orm_app.pool.upkeep import tend

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

logger = logging.getLogger("abs_orm_app.pool")

THREAD = "abs_orm_app-housekeeping"
TICK = 1.0  # seconds between two calls of the observers


class _Turn:
    """The right to be the housekeeping thread; once dropped, it is free again."""

    __slots__ = ("owner", "process")

    def __init__(self, owner: Housekeeping) -> None:
        self.owner, self.process = owner, owner.process

    def __del__(self) -> None:
        if self.process is self.owner.process:
            self.owner.free.append(_Turn(self.owner))


class Housekeeping:
    """Calls `tend` for each open pool when asked to or when due, and the observers at each tick.

    `tend` gets the time (`monotonic`) and returns when it is due next.
    """

    def __init__(self) -> None:
        self.pools: WeakSet[HardenedPool] = WeakSet()  # those that are open
        self.observers = Observers(self)
        self.reset()

    def reset(self) -> None:
        """In a forked child: forget the parent's thread and pools."""
        self.process = object()  # a new one in each child
        self.free: deque[_Turn] = deque()
        self.free.append(_Turn(self))
        self._called: set[HardenedPool] = set()
        self._bell = allocate_lock()
        self._ticked_at = monotonic()
        self._paused = False
        self.pools = WeakSet()

    def call(self, pool: HardenedPool) -> bool:
        """Have the thread look at this pool now; False if no thread can be started.

        Never waits, and may be called at any point, also by a signal handler or a finalizer.
        """
        self._called.add(pool)
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
        """After a fork, in the parent: maintain the pools again, beginning with all of them."""
        self._paused = False
        self._called.update(self.pools)
        if self._called:
            self.ring()

    def is_running(self) -> bool:
        return not self.free

    def ring(self) -> bool:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # the bell has rung already
        return not self.free or self._begin()

    def _begin(self) -> bool:
        """Start the thread, unless another call is starting it, or a fork is in progress."""
        if self._paused:
            return True
        try:
            turn = [self.free.pop()]
        except IndexError:
            return True
        try:
            # Of Python's two ways to start a thread, this one cannot be interrupted half-way.
            start_new_thread(self._start, (turn,))
        except RuntimeError:  # the process is out of threads, or about to end
            return False
        return True

    def _start(self, turn: list[_Turn]) -> None:
        """In a thread that `threading` does not know: start the real one, which has a name."""
        try:
            Thread(target=self._run, args=(turn,), name=THREAD, daemon=True).start()
        except RuntimeError:
            turn.clear()

    def _run(self, turn: list[_Turn]) -> None:
        process, died = self.process, True
        try:
            self._look_after_pools(process)
            died = False
        finally:
            turn.clear()
            if process is self.process and (self._called or (died and self.pools)):
                self._begin()
                if died:
                    logger.warning(messages.housekeeping_died())

    def _look_after_pools(self, process: object) -> None:
        """Run until there is no open pool, or until this is a forked child."""
        bell = self._bell
        while process is self.process and not self._paused:
            called = self._called
            while called:
                pool = called.pop()
                pool.due = 0.0
                self.pools.add(pool)
            now, due = monotonic(), inf
            for pool in tuple(self.pools):
                if pool.due <= now:
                    pool.due = _tend(pool, now)
                    # Some may have begun just now, and not have called.
                    pool.due = min(pool.due, pool.time_limits.due())
                    if pool.queue.waiters:
                        pool.due = min(pool.due, now + RETRY_INTERVAL)
                    if pool.closed:
                        self.pools.discard(pool)
                        continue
                due = min(due, pool.due)
            if not self.pools:
                return
            if self.observers:
                due = min(due, self._tell_observers(now))
            pool = None  # type: ignore[assignment]  # not kept alive while this thread sleeps
            left = due - monotonic()
            if left > 0 and not called:
                bell.acquire(True, left if left < TIMEOUT_MAX else -1)

    def _tell_observers(self, now: float) -> float:
        if now - self._ticked_at >= TICK:
            self._ticked_at = now
            for pool in tuple(self.pools):
                self.observers.tell(pool)
        return self._ticked_at + TICK


class Observers(list["Callable[[HardenedPool], None]"]):
    """Each is called with every open pool at each tick, and once with each that was just closed.

    For metrics. They run in the housekeeping thread, and must not wait for anything.
    """

    def __init__(self, housekeeping: Housekeeping) -> None:
        super().__init__()
        self._housekeeping = housekeeping

    def append(self, observer: Callable[[HardenedPool], None]) -> None:
        super().append(observer)
        if self._housekeeping.pools:
            self._housekeeping.ring()

    def tell(self, pool: HardenedPool) -> None:
        """Call each observer; one that raises does not affect the pool."""
        for observer in tuple(self):
            try:
                observer(pool)
            except Exception:
                logger.exception(messages.observer_failed(pool.name))


def _tend(pool: HardenedPool, now: float) -> float:
    try:
        return tend(pool, now)
    except Exception as error:  # the other pools must still be maintained
        pool.say(messages.housekeeping_failed(pool.name, error))
        return now + TICK


housekeeping = Housekeeping()
observers = housekeeping.observers
