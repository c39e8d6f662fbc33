"""The requests that wait for a connection, first come first served.

No lock guards the queue. Each step is one operation of a built-in container, which is atomic with
and without the GIL: what interrupts a thread between two steps (an exception thrown into it, a
signal handler, a finalizer) finds the queue whole.

- A waiter's outcome is decided once, by `dict.setdefault`: a connection, an error, or that it has
  gone. Nothing is taken off the queue before that.
- A waiter sleeps on a lock of its own until somebody has decided, or its deadline.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from threading import TIMEOUT_MAX
from time import monotonic
from typing import Any

OUTCOME = 0  # the one key of a waiter's box


class Waiter:
    """One request that waits: since `began`, until `deadline` at the most (`monotonic`).

    `outcome` is what it got; None while that is open.
    """

    __slots__ = ("_box", "_lock", "began", "deadline")

    def __init__(self, began: float, deadline: float) -> None:
        self.began = began
        self.deadline = deadline
        self._box: dict[int, Any] = {}
        self._lock = allocate_lock()
        self._lock.acquire()

    @property
    def outcome(self) -> Any:
        return self._box.get(OUTCOME)

    def offer(self, outcome: Any) -> bool:
        """Give it this, and wake it; False if something else was decided before."""
        try:
            return self._box.setdefault(OUTCOME, outcome) is outcome
        finally:
            self.wake()

    def wake(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it is awake

    def settle(self, outcome: Any) -> Any:
        """Decide for `outcome` unless something was decided before; return what counts."""
        return self._box.setdefault(OUTCOME, outcome)

    def wait(self, deadline: float) -> Any:
        """Sleep until it has an outcome, and return that; None at the deadline (`monotonic`)."""
        box = self._box
        while not box:
            left = deadline - monotonic()
            if left <= 0:
                return None
            self._lock.acquire(True, min(left, TIMEOUT_MAX))
        return box[OUTCOME]


class Queue:
    """Those who wait; `waiters` is for reading, the one that has waited longest at the left."""

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()

    def join(self, waiter: Waiter) -> None:
        self.waiters.append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Take it off the queue, if it is there."""
        try:
            self.waiters.remove(waiter)
        except ValueError:
            pass

    def hand_over(self, outcome: Any) -> bool:
        """Give `outcome` to the one that has waited longest; False if nobody takes it."""
        waiters = self.waiters
        while waiters:
            try:
                waiter = waiters[0]
            except IndexError:
                break
            taken = waiter.offer(outcome)
            self.leave(waiter)
            if taken:
                return True
        return False

    def tell_all(self, outcome: Callable[[], Any]) -> None:
        """Give each that waits now an outcome of its own."""
        for waiter in tuple(self.waiters):
            waiter.offer(outcome())
            self.leave(waiter)

    def wake_served(self) -> None:
        """Wake who has an outcome and may sleep: its giver was interrupted before it could."""
        for waiter in tuple(self.waiters):
            if waiter.outcome is not None:
                waiter.wake()
                self.leave(waiter)
