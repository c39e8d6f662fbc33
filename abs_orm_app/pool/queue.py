"""The requests that wait for a connection, first come first served.

No lock guards the queue. Each step is one operation of a built-in container, which is atomic with
and without the GIL: an interruption between two steps (an exception raised in the thread, a
signal handler, a finalizer) finds the queue consistent.

- A waiter's outcome is decided once, by `dict.setdefault`: a connection, an error, or that it has
  left. It is not removed from the queue before that.
- A waiter sleeps on a lock of its own until its outcome is decided, or until its deadline.
- A thousand deadlines may come at once. So many threads that wake together would spend their time
  competing for the interpreter, so they wake one after another: housekeeping lets the first few
  lead; a leader wakes at its deadline, and lets the next waiter lead when it leaves. The others
  sleep up to `GRACE` past their deadlines, which they need only if housekeeping is stuck.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from threading import TIMEOUT_MAX
from time import monotonic
from typing import Any

GRACE = 0.25  # seconds that a waiter may sleep past its deadline if it never leads
OUTCOME = 0  # the one key of a waiter's box


class Waiter:
    """One waiting request: since `began`, until `deadline` at most (`monotonic`).

    `outcome` is what it got; None while it is undecided.
    """

    __slots__ = ("_box", "_lock", "began", "deadline", "leads")

    def __init__(self, began: float, deadline: float) -> None:
        self.began = began
        self.deadline = deadline
        self.leads = False
        self._box: dict[int, Any] = {}
        self._lock = allocate_lock()
        self._lock.acquire()

    @property
    def outcome(self) -> Any:
        return self._box.get(OUTCOME)

    def offer(self, outcome: Any) -> bool:
        """Decide for this outcome, and wake the waiter; False if another was decided before."""
        try:
            return self._box.setdefault(OUTCOME, outcome) is outcome
        finally:
            self.wake()

    def wake(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it is already awake

    def settle(self, outcome: Any) -> Any:
        """Decide for `outcome` unless one was decided before; return the outcome that counts."""
        return self._box.setdefault(OUTCOME, outcome)

    def lead(self) -> None:
        """Let it wake at its deadline; it then lets the next one lead."""
        self.leads = True
        self.wake()

    def wait(self, until: float, grace: float = 0.0) -> Any:
        """Sleep until it has an outcome, and return it; None from `until` on (`monotonic`).

        `grace`: seconds that it may sleep longer, unless it leads.
        """
        box = self._box
        while not box:
            left = until - monotonic()
            if left <= 0:
                return None
            self._lock.acquire(True, min(left if self.leads else left + grace, TIMEOUT_MAX))
        return box[OUTCOME]


class Queue:
    """The waiters; the one that has waited longest is at the left of `waiters`."""

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()

    def join(self, waiter: Waiter) -> None:
        self.waiters.append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Remove it from the queue, if it is there; if it leads, let the next one lead whose
        deadline is not much later.
        """
        try:
            self.waiters.remove(waiter)
        except ValueError:
            return
        if waiter.leads:
            near = waiter.deadline + GRACE
            for other in list(self.waiters):
                if other.deadline <= near:
                    other.lead()
                    break

    def hand_over(self, outcome: Any) -> bool:
        """Give `outcome` to the one that has waited longest; False if none takes it."""
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
        """Give each waiter an outcome of its own."""
        for waiter in list(self.waiters):
            waiter.offer(outcome())
            self.leave(waiter)

    def wake_served(self) -> None:
        """Wake waiters that have an outcome: the thread that gave it may have been interrupted."""
        for waiter in list(self.waiters):
            if waiter.outcome is not None:
                waiter.wake()
                self.leave(waiter)
