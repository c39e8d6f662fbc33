"""What the pool knows about one connection: its owner and its state.

The entry is stored on its connection (the attribute `ENTRY`), so it cannot be mistaken for another
connection's. A connection has one owner at any time; a thread that has not won the step that makes
it the owner does not touch it:

| state | shown by | step that ends it |
|---|---|---|
| idle | it is in `Core.idle` | `deque.pop` or `remove` |
| checked before checkout | in no container; `checkout` is decided | any step, by its owner; \
during a ping, `checking.setdefault` |
| in use | `checkout` is empty | `checkout.setdefault`: a return, a loss, closing an orphan |
| being returned | `checkout` is decided | any step, by its owner, who can read `checkout` |
| offered to a waiter | a new `Handover` for each offer | the waiter's `setdefault` |
| waiting to be cleaned | it is in the cleaner's deque | `deque.popleft` |
| closing | it is in `Core.closing` | `deque.popleft`; it counts until it is closed |

Each checkout has a new `checkout` dict, so a late return cannot return the next holder's
connection. Unlike with `set.remove`, an interrupted thread can read the dict to see whether it won.
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
from abs_orm_app.pool.liveness import make_poller
from abs_orm_app.pool.roles import Role

AnyConnection = Connection[Any]
Checkout = dict[int, Any]  # empty while the connection is in use
Frames = tuple[tuple[CodeType, int], ...]  # each frame's code and last instruction

ENTRY = "_pool_entry"  # the attribute of a connection that holds its entry
ENDED = 0  # the only key of a checkout: who has ended it
LOST = "its holder has dropped it"
IN_TRANSACTION = frozenset({TransactionStatus.INTRANS, TransactionStatus.INERROR})


class AsyncTask:
    """A task that holds a connection: its thread, and the function that asked for the connection.

    It refers to the task weakly. The task's context can hold the connection, and the pool, which
    keeps the entry, would then keep both alive forever.
    """

    __slots__ = ("_function", "_module", "_task", "thread")

    def __init__(self, module: str, function: str) -> None:
        self._module, self._function = module, function
        self.thread = threading.current_thread()
        task = asyncio.current_task()
        self._task: Callable[[], Any] = ref(task) if task is not None else _nothing

    @property
    def name(self) -> str:
        """For example "shop.views.stream"."""
        return f"{self._module}.{self._function}"

    @property
    def is_done(self) -> bool:
        task = self._task()
        return task is None or task.done()

    @property
    def rests(self) -> bool:
        """True if the task is unfinished and its loop is not running."""
        task = self._task()
        return task is not None and not task.done() and not task.get_loop().is_running()

    @property
    def is_stranded(self) -> bool:
        """True if the task can never continue, because its loop is closed."""
        task = self._task()
        return task is not None and not task.done() and task.get_loop().is_closed()


class Entry:
    """One connection of the pool.

    It holds a weak reference to the connection, and calls `lost` with itself when the connection is
    garbage-collected. It holds a strong reference to libpq's handle, so that the slot is not freed
    before the handle is closed, and a second descriptor of the socket (`twin`), which any thread
    can shut down at any time, even if the process is out of descriptors.
    """

    __slots__ = (
        "backend_pid", "cancel", "checking", "checkout", "dirty", "examined", "expires_at",
        "frames", "idle_since", "misplaced", "must_ask", "opened_at", "pgconn", "poll", "reported",
        "role", "shut", "spoiled", "suspicion", "taken_at", "thread", "twin", "unfinished", "weak",
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
        self.poll = make_poller(conn).poll  # `poll(0)`: has the server sent anything?
        self.backend_pid = conn.pgconn.backend_pid
        self.opened_at = self.idle_since = monotonic()
        self.expires_at = expires_at
        self.checkout: Checkout = {ENDED: None}
        self.checking: Checkout | None = None  # set during a ping; its winner owns the connection
        self.taken_at = 0.0
        self.suspicion: object | None = None  # a new object each time; not None: ping before use
        # Operations that can make it unfit for the next holder: running, or failed. Not 0: unfit.
        self.spoiled = 0
        self.cancel: Any = None  # libpq's cancel handle, if it was ended while executing
        self.thread: threading.Thread | AsyncTask | None = None  # its holder
        self.frames: Frames | None = None
        self.reported = False  # a warning was logged that it has been held too long
        self.examined = False  # its thread has ended, and garbage was collected since
        self.dirty: Any = None  # what was changed in the session, for `clean`
        self.shut = False  # `twin` was shut down: it does not show when the server ends the session
        self.unfinished = False  # the cleaner must still roll back, or call `reset`
        self.role = Role.UNKNOWN  # the role of its server
        self.misplaced = False  # its server does not have the wanted role: it expires soon
        self.must_ask = False  # the pool must ask that server for its role
        setattr(conn, ENTRY, self)

    @property
    def in_use(self) -> bool:
        return not self.checkout

    def expire(self) -> None:
        """Have the pool replace it, at the next checkout, return or check by housekeeping."""
        self.expires_at = -inf

    def suspect(self) -> None:
        """Require a ping before the next checkout. This also works while it is in use."""
        self.suspicion = object()

    def is_orphaned(self) -> bool:
        """True if the thread that took the connection has ended. The main thread never counts:
        Python marks it as ended before it runs the atexit handlers.
        """
        thread = self.thread
        if isinstance(thread, AsyncTask):
            thread = thread.thread
        if thread is None or thread.is_alive():
            return False
        return thread is not threading.main_thread()

    def may_be_garbage(self) -> bool:
        """True if the thread or task that took it has ended; a task may have passed it on."""
        thread = self.thread
        return self.is_orphaned() or (isinstance(thread, AsyncTask) and thread.is_done)

    def detach(self) -> None:
        """Replace the connection's socket with `/dev/null`: this process cannot send on it."""
        self.twin.close()  # first: the next step needs a descriptor
        with suppress(OperationalError):  # already closed
            handle = self.pgconn.socket
            null = os.open(os.devnull, os.O_RDWR)
            try:
                os.dup2(null, handle, inheritable=False)
            finally:
                os.close(null)

    def shut_down(self) -> None:
        """Make whoever waits on this connection fail. Any thread may call this."""
        self.shut = True
        shut_down(self.twin)


def _nothing() -> None:
    return None


def twin_of(conn: AnyConnection) -> socket.socket:
    """Return a second descriptor of a connection's socket. Raises `OSError` if none is left."""
    return socket.socket(fileno=os.dup(conn.fileno()))


def shut_down(twin: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with suppress(OSError):  # already closed, or shut down before
        twin.shutdown(how)
