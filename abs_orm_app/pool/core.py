"""The state of one pool, its limits, and the steps that change them.

- `idle` holds the idle connections, the one used last at the right; `entries` those of all open
  ones; `attempts` the slots of those that are being opened; `queue` the waiting requests.
- A return hands the connection to the request that has waited longest, or makes it idle; a checkout
  takes an idle one, or waits. Each publishes what it did and then looks at the other side again, so
  that an idle connection and a waiting request cannot miss each other.

No lock guards this state, and no request ever holds a lock: each step is one atomic operation of a
built-in container (`entry.py` says which one). So an exception that is raised in a thread at any
point, or a signal handler or a finalizer that checks out or returns a connection, can neither leave
a lock locked nor block on one. A connection that an interrupted step has dropped is
garbage-collected; housekeeping then closes it and frees its slot.

Containers that other threads change are copied in one atomic step: `list` of a set or a dict, and
`copied` for a deque. Nobody iterates over them.

Invariant: `entries` + `attempts` <= `max_size`, and the sessions on the server are never more. A
slot is freed last: after the connection is closed, and, if it was executing a statement, after the
server has ended its session (`closing.py`).
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
    """What a pool asks of who uses it. Here are the answers for a pool that nobody extends.

    `rotating`: the password may change while the pool is open; once a password has worked, the
    pool retries after a refusal, with the password that is valid then.
    `in_file`: it is in a file, so it costs nothing to read it more often than it is tried.
    `reads_only`: the project only reads through it, so a standby is as good as a primary.
    `cleans`: `clean` is called for a connection whose session was changed, and with `cleans_all`
    for each that is returned. `unseen`: what whoever calls `putconn` may have changed in it.
    """

    rotating = False
    in_file = False
    reads_only = False
    cleans = False
    cleans_all = False
    unseen: Any = None

    def clean(self, _conn: AnyConnection, _dirty: Any) -> bool:
        """Clean the session of an idle connection, in a thread of the pool; False if it must be
        replaced. `_dirty` is what `end_checkout` was given. It is ended after 10 s.
        """
        return True

    def reclaim(self, _conn: AnyConnection) -> bool:
        """Return a connection that its holder does not use to the pool; False if it is used.

        Called by housekeeping once its thread has ended, and while requests wait and all
        connections are in use.
        """
        return False

    def pin_of(self, _conn: AnyConnection) -> Pin | None:
        """What needs the session of a connection that is checked out, for reports; `UNUSED` if
        nothing does, but it is kept. Called in any thread.
        """
        return None

    def served_by(self, _threads: Collection[str]) -> dict[str, str]:
        """What the threads with these names are doing, as in "GET /orders/", for reports; those
        that it cannot tell are left out.
        """
        return {}

    def is_gone(self) -> bool:
        """True once nobody can ask for this pool any more: housekeeping then closes it."""
        return False

    def successor(self) -> Any:
        """The pool that serves the waiting requests when this one is closed, or None. Called in
        their threads.
        """
        return None


class Core:
    """What the parts of a pool share. It does not know them, nor the pool: `pool` is a weak
    reference, so that a pool which nobody refers to is closed.
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
        self.paused = False  # no connection is opened: a fork or the end is near
        self.idle: deque[Any] = deque()
        self.entries: set[Entry] = set()
        self.attempts: set[Any] = set()
        self.closing: deque[Any] = deque()
        self.surplus: deque[None] = deque()  # one for each connection that `resize` has left over
        self.queue, self.until_full = Queue(), Queue()
        self.statistics = Statistics()
        self.fault: Fault | None = None  # why no connection could be opened last
        self.places: list[Any] = []  # where a connection was last opened, or tried
        self.asked_at = -inf  # when the server was last asked whether it answers (`monotonic`)
        self.reached = (-inf, "", "")  # when that ended, how (`liveness.reach`), and where
        self.trouble = ""  # the name of the cause that the log has begun to tell
        self.refusal: Fault | None = None  # why the project's check refuses each new connection
        self.elder: Core | None = None  # of the same alias: its connections count until they end
        self.due = 0.0  # when housekeeping looks at the pool next (`monotonic`)
        self.interrupted = False  # since the last garbage collection; it may have dropped one
        self.owes_collection = False  # a garbage collection was postponed for lack of time
        self.described = (-inf, "")  # when, and what a timeout says of the pool
        self.pool: Callable[[], Any] = _nothing
        me = ref(self)  # the parts that call it must not keep it alive

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
        """After a connection became idle, react to changes that another thread made meanwhile."""
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
        """Take back what was handed to tasks whose loop does not run, or is blocked."""
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
        """Have a connection closed that no other thread has.

        Housekeeping does it, in whose thread no exception is raised from outside, so it is done
        once and to its end.
        """
        conn._pool = None
        self.closing.append(conn)
        if not self.call_housekeeping() or self.closed:
            self.close_discarded()

    def close_discarded(self) -> None:
        """Close what was discarded; free each slot as soon as the server counts it no more."""
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
        """Close connections that were garbage-collected; return those that nobody had returned."""
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
        """Close connections of tasks that never go on, because their loop is closed; return them.

        While requests wait, also one whose ping waits for a loop that rests. A frame of the task
        still has the handle, so it is left to that.
        """
        stranded = []
        for entry in list(self.entries):
            checkout, checking = entry.checkout, entry.checking
            box = checking if checkout else checkout
            thread, conn = entry.thread, entry.weak()  # after the box: it is not an earlier one's
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
        """The slots that a closed pool of the same alias still has."""
        return sum(len(elder.attempts) + len(elder.entries) for elder in self.elders())

    def elders(self) -> list[Core]:
        """The closed pools of the same alias that still have slots; the others are dropped."""
        found: list[Core] = []
        last = self
        while (elder := last.elder) is not None:
            if elder.attempts or elder.entries:  # in the order in which a slot moves
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
        """True for one connection more than the limit allows, which must be closed."""
        try:
            self.surplus.pop()
        except IndexError:
            return False
        return True

    def recent_permanent_fault(self) -> Fault | None:
        """The fault that waiting cannot fix, until it is time to try again."""
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
        """Look after the pool, or after what is left of one that nobody refers to."""
        if (pool := self.pool()) is not None:
            due: float = pool.tend(now)
            return due
        if not self.closed:  # it was dropped without `close()`
            self.closed = True
            self.close_idle()
        self.pool = _nothing  # whose callback refers to this core
        self.close_discarded()
        self.close_lost()
        return self.closer.tend(now)

    def observed(self) -> Any:
        return self.pool()

    def say(self, text: str, level: int = logging.WARNING) -> None:
        """Log from a thread of its own, because a log handler may use the pool, and wait."""
        try:
            threads.start(f"{self.name}-log", logger.log, level, text)
        except (RuntimeError, MemoryError):  # the process is about to end, or has no thread left
            pass


def _nothing() -> None:
    return None
