"""What the pool knows about one connection: who owns it, and in what state it is.

An entry is stored on its connection (the attribute `ENTRY`), so that it cannot be confused with
another one's. A connection has one owner at each instant, and who has not won the step that makes
him the owner does not touch it:

| it is | shown by | the step that ends it |
|---|---|---|
| idle | it is in `Core.idle` | `deque.pop` or `remove` |
| checked before it is handed out | it is nowhere; `checkout` is decided | by who popped it; \
while it is pinged, `checking.setdefault` |
| in use | `checkout` is empty | `checkout.setdefault`: a return, its loss, an orphan's closer |
| returned | `checkout` is decided | by the winner, who can ask `checkout` whether it has won |
| offered to a waiter | an object of its own, `Handover` | the waiter's `setdefault` |
| waiting to be cleaned | it is in the cleaner's deque | `deque.popleft` |
| closing | it is in `Core.closing` | `deque.popleft`; it counts until it is closed |

`checkout` is a new dict for each checkout, so a late return cannot return the next holder's. Unlike
`set.remove`, `setdefault` can be asked again by a thread that was interrupted in between.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from math import inf
from types import CodeType
from typing import Any
from weakref import ref

from psycopg import Connection, OperationalError
from psycopg.pq import TransactionStatus

from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.liveness import make_poll
from abs_orm_app.pool.roles import Role

AnyConnection = Connection[Any]
Checkout = dict[int, Any]  # empty while the connection is in use
Frames = tuple[tuple[CodeType, int], ...]  # of each frame its code and its last instruction

ENTRY = "_pool_entry"  # the attribute of a connection that is its entry
ENDED = 0  # the one key of a checkout: who has ended it
LOST = "its holder has dropped it"
IN_TRANSACTION = frozenset({TransactionStatus.INTRANS, TransactionStatus.INERROR})


class AsyncTask:
    """A task that has a connection: its thread, and the function that asked for the connection.

    It refers to the task weakly: a task's context can hold the connection, and nothing would ever
    be garbage.
    """

    __slots__ = ("_function", "_module", "_task", "thread")

    def __init__(self, module: str, function: str) -> None:
        self._module, self._function = module, function
        self.thread = threading.current_thread()
        task = asyncio.current_task()
        self._task: Callable[[], Any] = ref(task) if task is not None else _nothing

    @property
    def name(self) -> str:
        """As in "shop.views.stream"."""
        return f"{self._module}.{self._function}"

    @property
    def is_done(self) -> bool:
        task = self._task()
        return task is None or task.done()

    @property
    def rests(self) -> bool:
        """True if its loop does not run."""
        task = self._task()
        return task is not None and not task.done() and not task.get_loop().is_running()

    @property
    def is_stranded(self) -> bool:
        """True if it never goes on, because its loop is closed."""
        task = self._task()
        return task is not None and not task.done() and task.get_loop().is_closed()


class Entry:
    """One connection of the pool.

    It holds a weak reference to the connection, and calls `lost` with itself when the connection is
    garbage-collected. It holds a strong reference to libpq's handle, so that the slot is not free
    before the handle is closed, and a second descriptor of the socket (`twin`), which can be shut
    down by any thread at any time, even if the process is out of descriptors.
    """

    __slots__ = (
        "backend_pid", "cancel", "checking", "checkout", "dirty", "examined", "expires_at",
        "frames", "idle_since", "misplaced", "must_ask", "opened_at", "pgconn", "poll", "reported",
        "role", "spoiled", "suspicion", "taken_at", "thread", "twin", "unfinished", "weak",
    )  # fmt: skip

    def __init__(
        self,
        conn: AnyConnection,
        twin: socket.socket,
        expires_at: float,
        lost: Callable[[Entry], object],
    ) -> None:
        self.weak: Callable[[], Any] = ref(conn, lambda _: lost(self))
        self.pgconn = conn.pgconn
        self.twin = twin
        self.poll = make_poll(conn)  # `poll(0)`: has the server sent anything?
        self.backend_pid = conn.pgconn.backend_pid
        self.opened_at = self.idle_since = monotonic()
        self.expires_at = expires_at
        self.checkout: Checkout = {ENDED: None}
        self.checking: Checkout | None = None  # while it is pinged for a checkout; then decided
        self.taken_at = 0.0
        self.suspicion: object | None = None  # a new one each time: ping it before it is used
        # Not 0: unfit for the next holder. Of what may make it so, how much is under way or did.
        self.spoiled = 0
        self.cancel: Any = None  # libpq's handle to cancel what a spoiled one was executing
        self.thread: threading.Thread | AsyncTask | None = None  # who has it
        self.frames: Frames | None = None
        self.reported = False  # a warning was logged that this checkout takes too long
        self.examined = False  # its thread has ended, and garbage was collected since
        self.dirty: Any = None  # what was changed in the session, for `clean`
        self.unfinished = False  # the cleaner must end its transaction, or call `reset`
        self.role = Role.UNKNOWN  # of its server
        self.misplaced = False  # its server does not have the wanted role: it expires soon
        self.must_ask = False  # the pool must ask that server for its role
        setattr(conn, ENTRY, self)

    @property
    def in_use(self) -> bool:
        return not self.checkout

    def expire(self) -> None:
        """Have it replaced when the pool looks at it next."""
        self.expires_at = -inf

    def suspect(self) -> None:
        """Have it pinged before it is handed out; one in use, once it is back."""
        self.suspicion = object()

    def is_orphaned(self) -> bool:
        """True if the thread that took the connection has ended. The main thread runs atexit
        handlers after Python has marked it as ended.
        """
        thread = self.thread
        if isinstance(thread, AsyncTask):
            thread = thread.thread
        if thread is None or thread.is_alive():
            return False
        return thread is not threading.main_thread()

    def may_be_garbage(self) -> bool:
        """True if whoever took the connection has ended; a task may have handed it to another."""
        thread = self.thread
        return self.is_orphaned() or (isinstance(thread, AsyncTask) and thread.is_done)

    def detach(self) -> None:
        """Replace the connection's socket by `/dev/null`: this process can send nothing on it."""
        self.twin.close()  # first: the next step needs a descriptor
        with suppress(OperationalError):  # it is closed
            handle = self.pgconn.socket
            null = os.open(os.devnull, os.O_RDWR)
            try:
                os.dup2(null, handle, inheritable=False)
            finally:
                os.close(null)

    def shut_down(self) -> None:
        """Wake the thread that waits on this connection with an error. From any thread."""
        shut_down(self.twin)


def _nothing() -> None:
    return None


def twin_of(conn: AnyConnection) -> socket.socket:
    """A second descriptor of a connection's socket. Raises `OSError` if there are no more."""
    return socket.socket(fileno=os.dup(conn.fileno()))


def shut_down(twin: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with suppress(OSError):  # it is closed, or was shut down before
        twin.shutdown(how)
