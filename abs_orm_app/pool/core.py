"""The state of one pool, its limits, and the steps that change them.

- `idle` holds the idle connections, the most recently used at the right; `entries` those of all
  open ones; `attempts` the slots of connections being opened; `queue` the waiting requests.
- A return hands the connection to the request that has waited longest, or makes it idle; a checkout
  takes an idle one, or waits. Each publishes its change first and then checks the other side again,
  so an idle connection and a waiting request cannot miss each other.

No lock guards this state, and no request ever holds a lock: each step is one atomic operation of a
built-in container (`entry.py` lists them). So an exception raised in a thread at any point, or a
signal handler or finalizer that checks out or returns a connection, can neither leave a lock locked
nor block on one. A connection dropped by an interrupted step is garbage-collected; housekeeping
then closes it and frees its slot.

Containers that other threads change are never iterated over. They are copied in one atomic step:
`list` for a set or a dict, and `copied` for a deque.

Invariant: `entries` + `attempts` <= `max_size`, and the server never has more sessions. A slot is
freed last: after the connection is closed, and, if it was executing a statement, after the server
has ended its session (`closing.py`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection
from math import inf
from typing import Any
from weakref import ref

from abs_orm_app.pool import threads
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.closing import CLOSED, Closer
from abs_orm_app.pool.entry import ENDED, LOST, AnyConnection, AsyncTask, Entry
from abs_orm_app.pool.growth import checked_sizes
from abs_orm_app.pool.holders import Holder, Pin, count_pins, holder_of
from abs_orm_app.pool.housekeeping import housekeeping
from abs_orm_app.pool.queue import CLAIM, Handover, Queue
from abs_orm_app.pool.server_errors import Fault
from abs_orm_app.pool.statistics import Statistics

logger = logging.getLogger("abs_orm_app.pool")


class Hooks:
    """What a pool asks the code that uses it. The defaults here are for a pool without hooks.

    `rotating`: the password may change while the pool is open. Once a password has worked, the pool
    retries after a refusal, with the password that is then current.
    `in_file`: the password is in a file, so it is cheap to read it more often than it is tried.
    `reads_only`: the project only reads through this pool, so a standby is as good as a primary.
    `cleans`: `clean` is called for each connection whose session was changed; with `cleans_all`,
    for each returned connection.
    `unseen`: what the caller of `putconn` may have changed in the session.
    """

    rotating = False
    in_file = False
    reads_only = False
    cleans = False
    cleans_all = False
    unseen: Any = None

    def clean(self, _conn: AnyConnection, _dirty: Any) -> bool:
        """Clean the session of an idle connection, in a thread of the pool; False if it must be
        replaced. `_dirty` is what `end_checkout` was given. The time limit is 10 s.
        """
        return True

    def reclaim(self, _conn: AnyConnection) -> bool:
        """Return to the pool a connection that its holder is not using; False if it is being used.

        Housekeeping calls this once its thread has ended, and while requests wait and all
        connections are in use.
        """
        return False

    def pin_of(self, _conn: AnyConnection) -> Pin | None:
        """Return what needs the session of a checked-out connection, for reports; `UNUSED` if its
        holder keeps it but nothing needs it. Any thread may call this.
        """
        return None

    def served_by(self, _threads: Collection[str]) -> dict[str, str]:
        """Return what the threads with these names are doing, such as "GET /orders/", for reports.
        Threads that are doing something else are left out.
        """
        return {}

    def is_gone(self) -> bool:
        """True once no code can ask for this pool any more; housekeeping then closes it."""
        return False

    def successor(self) -> Any:
        """Return the pool that serves the waiting requests after this one is closed, or None.
        Called in the threads of those requests.
        """
        return None


class Core:
    """What the parts of a pool share. It does not refer to them, and refers to the pool only weakly
    (`pool`), so that a pool without other references is closed.
    """

    def __init__(
        self, name: str, min_size: int, max_size: int | None, timeout: float, hooks: Hooks
    ) -> None:
        self.name = name
        self.min_size, self.max_size = checked_sizes(min_size, max_size)
        self.timeout = timeout
        self.hooks = hooks
        self.leak_seconds: float | None = None
        self.max_waiting = 0
        self.closed, self.was_opened, self.ended = True, False, False
        self.paused = False  # open no connections: a fork or the end of the process is near
        self.idle: deque[Any] = deque()
        self.entries: set[Entry] = set()
        self.attempts: set[Any] = set()
        self.closing: deque[Any] = deque()
        self.surplus: deque[None] = deque()  # one per connection that `resize` left above the limit
        self.queue, self.until_full = Queue(), Queue()
        self.statistics = Statistics()
        self.fault: Fault | None = None  # why the last attempt to connect failed; None if it worked
        self.places: list[Any] = []  # the addresses of the last attempt to connect
        self.asked_at = -inf  # when the server was last probed (`monotonic`)
        self.reached = (-inf, "", "")  # when the last probe ended, its result (`reach`), and where
        self.trouble = ""  # the name of the cause that was logged and is not over yet
        self.refusal: Fault | None = None  # why the project's check refuses each new connection
        self.elder: Core | None = None  # the closed pool of this alias; its connections still count
        self.due = 0.0  # when housekeeping next looks at the pool (`monotonic`)
        self.interrupted = False  # since the last garbage collection; a connection may be lost
        self.owes_collection = False  # a garbage collection was postponed for lack of time
        self.described = (-inf, "")  # the description of the pool for timeouts: when, and the text
        self.pool: Callable[[], Any] = _nothing
        me = ref(self)  # the callbacks below must not keep the core alive

        def lost(entry: Entry) -> None:
            if (core := me()) is not None:
                core.connection_lost(entry)

        def freed(entry: Entry) -> None:
            if (core := me()) is not None:
                core.free(entry)

        self.lost = lost
        self.closer = Closer(name, freed)

    # Steps

    def add(self, conn: Any) -> None:
        """Hand a connection to a waiting request, or make it idle; discard it if it is expired."""
        late = conn._pool_entry.expires_at <= monotonic()
        if self.closed or late or (self.surplus and self.is_surplus()):
            self.discard(conn)
            return
        conn._pool = None
        if not (self.queue.waiters and self.queue.hand_over(Handover(conn))):
            self.idle.append(conn)
            self.look_again()

    def look_again(self) -> None:
        """After making a connection idle, react to changes that other threads made meanwhile."""
        if self.queue.waiters:
            self.serve()
        if self.closed:
            self.close_idle()
        if self.until_full.waiters and len(self.idle) >= self.min_size:
            self.until_full.tell_all(bool)

    def serve(self) -> None:
        """Hand idle connections to waiting requests."""
        while self.queue.waiters and self.idle:
            try:
                conn = self.idle.pop()
            except IndexError:
                return
            if not self.queue.hand_over(Handover(conn)):
                self.idle.append(conn)

    def take_back(self, now: float) -> None:
        """Take back connections handed to tasks whose loop is blocked or not running."""
        unclaimed = self.queue.unclaimed
        for waiter, since in list(unclaimed.items()):
            if since + CLAIM <= now and waiter.outcome is not None:
                unclaimed.pop(waiter, None)
                if (conn := waiter.take_back()) is not None:
                    self.add(conn)

    def take_idle(self, conn: Any) -> bool:
        """Take this idle connection; False if another thread has taken it."""
        try:
            self.idle.remove(conn)
        except ValueError:
            return False
        return True

    def discard(self, conn: Any) -> None:
        """Have a connection closed that no other thread owns.

        Housekeeping closes it: no exception is raised in its thread from outside, so this happens
        once, and completely.
        """
        conn._pool = None
        self.closing.append(conn)
        if not self.call_housekeeping() or self.closed:
            self.close_discarded()

    def close_discarded(self) -> None:
        """Close discarded connections; free each slot as soon as the server no longer counts it."""
        while self.closing:
            try:
                conn = self.closing.popleft()
            except IndexError:
                return
            entry = conn._pool_entry
            if entry.misplaced:
                self.statistics.misplaced += 1
            elif entry.expires_at <= monotonic():
                self.statistics.expired += 1
            if self.closer.end(conn):
                self.free(entry)

    def free(self, entry: Entry) -> None:
        """Free the slot of a connection that was closed."""
        self.entries.discard(entry)
        if self.queue.waiters or self.until_full.waiters or self.is_below_size():
            self.call_housekeeping()

    def close_idle(self) -> None:
        while self.idle:
            try:
                conn = self.idle.popleft()
            except IndexError:
                return
            self.discard(conn)

    def close_longest_idle(self, before: float) -> bool:
        """Close the connection that has been idle longest, if it was not used since `before`."""
        try:
            conn = self.idle[0]
        except IndexError:
            return False
        if conn._pool_entry.idle_since > before or not self.take_idle(conn):
            return False
        self.discard(conn)
        return True

    def connection_lost(self, entry: Entry) -> None:
        """Called when a connection was garbage-collected, at any point of any thread."""
        if entry in self.entries:
            entry.checkout.setdefault(ENDED, LOST)  # a finalizer that returns it now is refused
            self.call_housekeeping()

    def close_lost(self) -> list[Entry]:
        """Close connections that were garbage-collected; return those that were never returned."""
        leaked = []
        for entry in list(self.entries):
            if entry.weak() is None and entry.pgconn is not CLOSED:
                if entry.checkout.setdefault(ENDED, LOST) is LOST:
                    self.statistics.leaked += 1
                    leaked.append(entry)
                if self.closer.lose(entry):
                    self.free(entry)
        return leaked

    def close_stranded(self) -> list[Entry]:
        """Close and return the connections of tasks that cannot continue: their loop is closed.

        While requests wait, this includes a ping whose loop is not running. A frame of the task
        still has the handle, so the closer, which finds the lock taken, leaves the handle to it.
        """
        stranded = []
        for entry in list(self.entries):
            checkout, checking = entry.checkout, entry.checking
            box = checking if checkout else checkout
            thread, conn = entry.thread, entry.weak()  # read after the box: not an earlier holder's
            if (
                isinstance(thread, AsyncTask)
                and (thread.is_stranded or (checkout and self.queue.waiters and thread.rests))
                and conn is not None
                and box == {}
                and box.setdefault(ENDED, LOST) is LOST
            ):
                if thread.is_stranded:
                    self.statistics.leaked += 1
                    stranded.append(entry)
                conn.lock.acquire(blocking=False)
                self.discard(conn)
        return stranded

    def call_housekeeping(self) -> bool:
        """Have housekeeping look at the pool now; False if its thread does not run. Never waits."""
        return housekeeping.call(self)

    # Facts

    @property
    def in_use(self) -> list[Entry]:
        """The entries of the connections that are checked out."""
        return [entry for entry in list(self.entries) if entry.in_use]

    @property
    def inherited(self) -> int:
        """The number of slots that closed pools of the same alias still have."""
        return sum(len(elder.attempts) + len(elder.entries) for elder in self.elders())

    def elders(self) -> list[Core]:
        """Return the closed pools of the same alias that still have slots; forget the others."""
        found: list[Core] = []
        last = self
        while (elder := last.elder) is not None:
            if elder.attempts or elder.entries:  # in this order: slots move from left to right
                found.append(elder)
                last = elder
            else:
                last.elder = elder.elder
        return found

    def has_room(self) -> bool:
        return len(self.entries) + len(self.attempts) + self.inherited < self.max_size

    def is_below_size(self) -> bool:
        return len(self.entries) < self.min_size

    def is_surplus(self) -> bool:
        """True if one connection above the limit must still be closed; the caller must close it."""
        try:
            self.surplus.pop()
        except IndexError:
            return False
        return True

    def recent_permanent_fault(self) -> Fault | None:
        """Return the fault that waiting cannot fix, until it is time to retry."""
        fault = self.fault
        if fault and fault.permanent and monotonic() - fault.at < fault.retry_after:
            return fault
        return None

    def holder_of(self, entry: Entry) -> Holder:
        return holder_of(entry, self.hooks.pin_of)

    def count_pins(self) -> tuple[dict[str, int], int]:
        return count_pins(self.in_use, self.hooks.pin_of)

    # For housekeeping

    def tend(self, now: float) -> float:
        """Maintain the pool, or what is left of it once nothing refers to it."""
        if (pool := self.pool()) is not None:
            due: float = pool.tend(now)
            return due
        if not self.closed:  # it was dropped without `close()`
            self.closed = True
            self.close_idle()
        self.pool = _nothing  # its callback refers to this core
        self.close_discarded()
        self.close_lost()
        return self.closer.tend(now)

    def observed(self) -> Any:
        return self.pool()

    def say(self, text: str, level: int = logging.WARNING) -> None:
        """Log in a separate thread, because a log handler may use the pool and wait."""
        try:
            threads.start(f"{self.name}-log", logger.log, level, text)
        except (RuntimeError, MemoryError):  # the process is ending, or has no thread left
            pass


def _nothing() -> None:
    return None
