"""What the pool knows about one connection and its holder.

An entry is stored on its connection (the attribute `ENTRY`), so that it cannot be confused with
another one's. No lock guards it: it belongs to the thread that has the connection. While it is
checked out, only that thread writes; others only read, for a report.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from time import monotonic
from types import CodeType
from typing import Any
from weakref import ref

from psycopg import Connection, OperationalError

from abs_orm_app.pool.liveness import make_poller
from abs_orm_app.pool.roles import Role

AnyConnection = Connection[Any]

ENTRY = "_pool_entry"  # the attribute of a connection that is its entry
STACK_LIMIT = 40  # frames recorded at a checkout when tracing is on
PLUMBING = (
    "django",
    "asgiref",
    "psycopg",
    "psycopg_pool",
    "abs_orm_app",
)  # not the project's own code

Frames = tuple[tuple[CodeType, int], ...]  # of each frame its code and its last instruction


@dataclass(frozen=True)
class Pin:
    """What needs the session of a connection that is checked out."""

    reason: str  # of a few, such as "transaction" or "setting": the label of a metric
    what: str  # "SET search_path"
    frames: Frames | None = None  # the stack that it comes from, if that was recorded

    def __str__(self) -> str:
        """As in "SET search_path at shop/middleware.py:31 in __call__"."""
        return f"{self.what} at {self.where}" if self.where else self.what

    @property
    def where(self) -> str | None:
        """The project's own line that it comes from."""
        return own_line(self.frames) if self.frames else None


@dataclass(frozen=True)
class Holder:
    """Who has a connection checked out."""

    pid: int  # of the server's backend
    thread: str
    seconds: float
    frames: Frames | None  # the stack that took it, when tracing is on
    pin: Pin | None = None  # None: nothing needs its session, or a statement is being executed
    unused: bool = False  # nothing needs its session, but it is kept

    @property
    def where(self) -> str | None:
        """The project's own line that took it."""
        return own_line(self.frames) if self.frames else None

    @property
    def lines(self) -> tuple[str, ...]:
        """The project's own lines that took it, the innermost first."""
        return tuple(own_lines(self.frames)) if self.frames else ()


class Entry:
    """One connection of the pool: its poller, its age, its holder.

    It holds a weak reference to the connection, and calls `lost` with itself when the connection is
    garbage-collected. It holds a strong reference to libpq's handle, so that the pool can close the
    handle of a garbage-collected connection before another one gets its slot.
    """

    __slots__ = (
        "backend_pid", "dirty", "examined", "expires_at", "frames", "idle_since", "lost",
        "misplaced", "must_ask", "opened_at", "pgconn", "poll", "reported", "role",
        "suspected_at", "taken_at", "thread", "weak",
    )  # fmt: skip

    def __init__(
        self, conn: AnyConnection, expires_at: float, lost: Callable[[Entry], object]
    ) -> None:
        self.weak = ref(conn, lambda _: lost(self))
        self.pgconn = conn.pgconn
        self.poll = make_poller(conn).poll  # `poll(0)`: has the server sent anything?
        self.backend_pid = conn.pgconn.backend_pid
        self.opened_at = self.idle_since = monotonic()
        self.expires_at = expires_at
        self.taken_at = 0.0
        self.suspected_at = -inf  # its server, or the network to it, may have failed then
        self.thread: threading.Thread | None = None
        self.frames: Frames | None = None
        self.reported = False  # a warning was logged that this checkout takes too long
        self.examined = False  # its thread has ended, and garbage was collected since
        self.lost = False
        self.dirty: Any = None  # what was changed in the session, for `clean`
        self.role = Role.UNKNOWN  # of its server
        self.misplaced = False  # its server does not have the wanted role: it expires soon
        self.must_ask = False  # the pool must ask that server for its role
        setattr(conn, ENTRY, self)

    def expire(self) -> None:
        """Have it replaced when the pool looks at it next."""
        self.expires_at = -inf

    def suspect(self) -> None:
        """Have it pinged before it is handed out; one in use, once it is back."""
        self.suspected_at = monotonic()
        self.idle_since = -inf

    def is_orphaned(self) -> bool:
        """True if the thread that took the connection has ended. The main thread runs atexit
        handlers after Python has marked it as ended.
        """
        thread = self.thread
        if thread is None or thread.is_alive():
            return False
        return thread is not threading.main_thread()

    def detach(self) -> None:
        """Replace the connection's socket by `/dev/null`: this process can send nothing on it."""
        with suppress(OperationalError):  # it is closed
            handle = self.pgconn.socket
            null = os.open(os.devnull, os.O_RDWR)
            try:
                os.dup2(null, handle, inheritable=False)
            finally:
                os.close(null)

    def holder(self, pin: Pin | None = None, *, unused: bool = False) -> Holder:
        frames, thread, taken_at = self.frames, self.thread, self.taken_at
        return Holder(
            pid=self.backend_pid,
            thread=thread.name if thread else "?",
            seconds=monotonic() - taken_at if taken_at else 0.0,
            frames=frames,
            pin=pin,
            unused=unused,
        )


def shut_down(conn: AnyConnection) -> None:
    """Wake the thread that waits on this connection with an error; it then closes it."""
    with suppress(OperationalError, OSError), socket.socket(fileno=os.dup(conn.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)


def frames_of_caller() -> Frames:
    """Record the stack above the caller. Source lines are read only if it is shown."""
    frames = []
    frame = sys._getframe(2)
    for _ in range(STACK_LIMIT):
        frames.append((frame.f_code, frame.f_lasti))
        if (outer := frame.f_back) is None:
            break
        frame = outer
    return tuple(frames)


def own_line(frames: Frames) -> str | None:
    """The innermost line of a stack (innermost first) that is the project's own.

    Reads no file, because a thousand requests that time out may call it at the same time.
    """
    return next(own_lines(frames), None)


def own_lines(frames: Frames) -> Iterator[str]:
    """The project's own lines of a stack, the innermost first; if there are none, its packages'."""
    plumbing = _plumbing()
    outside = [frame for frame in frames if not frame[0].co_filename.startswith(plumbing)]
    own = [frame for frame in outside if not frame[0].co_filename.startswith(_LIBRARIES)]
    for code, instruction in own or outside:
        yield f"{code.co_filename}:{_line(code, instruction)} in {code.co_name}"


def _line(code: CodeType, instruction: int) -> int:
    for start, end, line in code.co_lines():
        if start <= instruction < end and line:
            return line
    return code.co_firstlineno


def _plumbing() -> tuple[str, ...]:
    packages = (sys.modules.get(name) for name in PLUMBING)  # what is not loaded is in no stack
    paths = (os.path.join(path, "") for package in packages if package for path in package.__path__)
    return (*paths, contextlib.__file__, threading.__file__)


# Installed packages and Python's own, the frozen ones too.
_LIBRARIES = (
    "<frozen ",
    *{
        os.path.join(sysconfig.get_path(name), "")
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    },
)
