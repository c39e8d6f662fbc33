"""The requests that wait for a connection, first come first served.

No lock guards the queue. Each step is one atomic operation of a built-in container, so an
interruption between two steps (an exception raised in the thread, a signal handler, a finalizer)
finds the queue consistent.

- A waiter's outcome is decided once, by `dict.setdefault`: a connection, an error, or that it has
  left. It is not removed from the queue before that.
- Each offer is a new `Handover`: a connection may be offered to the same waiter again, after the
  waiter has used and returned it, and only the first offer counts.
- A task cannot take anything while its loop is blocked or not running. So it must claim the
  connection that it was handed, again by `dict.setdefault`. If that takes long, `Core.take_back`
  claims the connection first, and the task waits again.
- A waiter sleeps on its own lock until its outcome is decided, or until its deadline.
- A thousand deadlines may pass at once. If all these threads woke together, they would compete for
  the interpreter, so they wake one after another: housekeeping makes the first few waiters leaders.
  A leader wakes at its deadline, and makes the next waiter a leader when it leaves. The others
  sleep up to `GRACE` past their deadlines, but only if housekeeping is stuck.
"""

from __future__ import annotations

import asyncio
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from threading import TIMEOUT_MAX
from typing import Any, TypeVar

from abs_orm_app.pool.clock import monotonic

GRACE = 0.25  # seconds that a waiter may sleep past its deadline if it never leads
T = TypeVar("T")

CLAIM = 0.25  # seconds after which a connection that a task has not claimed is taken back
OUTCOME, CLAIMED = 0, 1  # the keys of a waiter's box
TAKEN, LEFT, VOID = object(), object(), object()


def copied(items: deque[T]) -> list[T]:
    """Return a consistent copy of a deque, even while other threads change it."""
    while True:
        try:
            return list(items)
        except RuntimeError:  # without the GIL: it was changed meanwhile
            continue


class Handover:
    """One connection on its way to a waiter."""

    __slots__ = ("conn", "waiter")

    def __init__(self, conn: Any) -> None:
        self.conn = conn
        self.waiter: Any = None  # the waiter that it was last offered to, or `TAKEN`

    @property
    def taken(self) -> bool:
        """True once a waiter has it. A thread that was interrupted in its offer can check this."""
        waiter = self.waiter
        return waiter is TAKEN or (waiter is not None and waiter.outcome is self)


class Waiter:
    """One waiting request: since `began`, until `deadline` at most (`monotonic`).

    `outcome` is what it got; None while undecided.
    """

    __slots__ = ("_box", "_lock", "began", "deadline", "leads")
    is_task = False

    def __init__(self, began: float, deadline: float) -> None:
        self.began = began
        self.deadline = deadline
        self.leads = False
        self._box: dict[int, Any] = {}
        self._lock = allocate_lock()
        self._lock.acquire()

    @property
    def rests(self) -> bool:
        """True if its loop is not running, so it can take nothing now, and perhaps never."""
        return False

    @property
    def outcome(self) -> Any:
        return self._box.get(OUTCOME)

    def offer(self, outcome: Any) -> None:
        """Set the outcome, unless one is already set, and wake the waiter."""
        try:
            self._box.setdefault(OUTCOME, outcome)
        finally:
            self.wake()

    def wake(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it is already awake

    def settle(self, outcome: Any) -> Any:
        """Set the outcome, unless one is already set; return the one that counts."""
        return self._box.setdefault(OUTCOME, outcome)

    def lead(self) -> None:
        """Make it a leader: it wakes at its deadline, and then makes the next waiter one."""
        self.leads = True
        self.wake()

    def wait(self, until: float, grace: float = 0.0) -> Any:
        """Sleep until there is an outcome, and return it; None at `until` (`monotonic`).

        `grace`: seconds that it may sleep longer, unless it is a leader.
        """
        box = self._box
        while not box:
            left = until - monotonic()
            if left <= 0:
                return None
            self._lock.acquire(True, min(left if self.leads else left + grace, TIMEOUT_MAX))
        return box[OUTCOME]


class TaskWaiter(Waiter):
    """A waiting task. Its loop wakes it, whichever thread has served it."""

    __slots__ = ("_future", "_loop")
    is_task = True

    def __init__(self, began: float, deadline: float) -> None:
        super().__init__(began, deadline)
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None

    @property
    def rests(self) -> bool:
        return not self._loop.is_running()

    def settle(self, outcome: Any) -> Any:
        """As for a thread, but `outcome` also counts if the task's connection was taken back."""
        decided = super().settle(outcome)
        if decided is VOID or (
            isinstance(decided, Handover) and self._box.setdefault(CLAIMED, TAKEN) is not TAKEN
        ):
            return outcome
        return decided

    def take_back(self) -> Any:
        """Take back the connection that it has not claimed; it then waits again. None if it has."""
        outcome, mine = self.outcome, object()
        if isinstance(outcome, Handover) and self._box.setdefault(CLAIMED, mine) is mine:
            return outcome.conn
        return None

    def wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._resume)
        except RuntimeError:
            pass  # the loop is closed

    def _resume(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait_in_task(self, until: float) -> Any:
        while not self._box:
            left = until - monotonic()
            if left <= 0:
                return None
            self._future = self._loop.create_future()
            timer = self._loop.call_later(left, self._resume)
            try:
                await self._future
            finally:
                timer.cancel()
        return self._box[OUTCOME]


class Turn:
    """Waits for a waiter's outcome until `until`; None if there is none by then."""

    def __init__(self, waiter: Any, until: float, grace: float = 0.0) -> None:
        self._waiter, self._until, self._grace = waiter, until, grace

    def block(self) -> Any:
        return self._waiter.wait(self._until, self._grace)

    async def task(self) -> Any:
        return await self._waiter.wait_in_task(self._until)


class Queue:
    """The waiters; the one that has waited longest is at the left of `waiters`.

    `unclaimed`: tasks that were handed a connection, and when (`monotonic`).
    """

    __slots__ = ("unclaimed", "waiters")

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()
        self.unclaimed: dict[Any, float] = {}

    def join(self, waiter: Waiter) -> None:
        self.waiters.append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Remove a waiter from the queue, if it is there. If it is a leader, the next waiter with a
        deadline that is not much later becomes one.
        """
        try:
            self.waiters.remove(waiter)
        except ValueError:
            return
        if waiter.leads:
            near = waiter.deadline + GRACE
            for other in copied(self.waiters):
                if other.deadline <= near:
                    other.lead()
                    break

    def hand_over(self, handover: Handover) -> bool:
        """Give a connection to the request that has waited longest; False if none takes it."""
        waiters = self.waiters
        while waiters:
            try:
                waiter = waiters[0]
            except IndexError:
                break
            if waiter.is_task:
                if waiter.rests:
                    self.dismiss(waiter)
                    continue
                self.unclaimed[waiter] = monotonic()
            handover.waiter = waiter
            waiter.offer(handover)
            self.leave(waiter)
            if handover.taken:
                handover.waiter = TAKEN  # the waiter refers to it: a cycle would keep both
                return True
        return False

    def settle(self, waiter: Waiter, outcome: Any) -> Any:
        """Called by the waiter itself, see `Waiter.settle`."""
        outcome = waiter.settle(outcome)
        self.unclaimed.pop(waiter, None)
        return outcome

    def dismiss(self, waiter: Waiter) -> None:
        """Remove a task whose loop is not running. Once it runs, the task rejoins at the head."""
        waiter.offer(VOID)
        self.leave(waiter)

    def tell_all(self, outcome: Callable[[], Any]) -> None:
        """Give each waiter an outcome of its own."""
        for waiter in copied(self.waiters):
            waiter.offer(outcome())
            self.leave(waiter)

    def wake_served(self) -> None:
        """Wake waiters that have an outcome, because the thread that set it may have been
        interrupted. Dismiss tasks whose loop is not running.
        """
        for waiter in copied(self.waiters):
            if waiter.outcome is not None or waiter.rests:
                self.dismiss(waiter)
