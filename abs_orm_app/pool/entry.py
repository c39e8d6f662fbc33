"""What the pool knows of one connection, and of the one who holds it."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import traceback
from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from time import monotonic
from typing import Any
from weakref import ref

from psycopg import Connection

from abs_orm_app.pool.liveness import make_poller

STACK_LIMIT = 40  # frames recorded at a checkout when tracing is on
PLUMBING = (
    "django",
    "asgiref",
    "psycopg",
    "psycopg_pool",
    "abs_orm_app",
)  # not the project's own code


@dataclass(frozen=True)
class Holder:
    """Who has a connection checked out."""

    pid: int  # of the server's backend
    thread: str
    seconds: float
    where: str | None  # the project's own line that took it, when tracing is on
    stack: str | None  # the whole of it


class Slot:
    """One connection of the pool: its poller, its age, its holder.

    Belongs to whoever has the connection: the pool under its lock while it is idle, the thread that
    took it while it is checked out. Others only read, for a report.

    It holds the connection weakly: when one that is checked out is garbage-collected, the slot
    appends itself to `lost`. (Appending to a deque is all that is safe there: the collector runs at
    any point of any thread, also while that thread holds the pool's lock.)
    """

    __slots__ = (
        "backend_pid", "examined", "idle_since", "key", "opened_at", "poller", "reported", "stack",
        "taken_at", "thread", "weak",
    )  # fmt: skip

    def __init__(self, conn: Connection[Any], lost: deque[Slot]) -> None:
        self.key = id(conn)
        self.weak: ref[Connection[Any]] | None = ref(conn, lambda _: lost.append(self))
        self.poller = make_poller(conn)
        self.backend_pid = conn.pgconn.backend_pid
        self.opened_at = self.idle_since = monotonic()
        self.taken_at: float | None = None
        self.thread: threading.Thread | None = None
        self.stack: traceback.StackSummary | None = None
        self.reported = False
        self.examined = False  # its thread has ended, and garbage was looked for since

    def forget(self) -> None:
        """The connection was closed by the pool: its end is no loss."""
        self.weak = None

    def take(self, now: float) -> None:
        self.taken_at = now
        self.thread = threading.current_thread()

    def release(self, now: float) -> float:
        """The connection is back in the pool, or new; return how many seconds it was in use."""
        held = now - self.taken_at if self.taken_at else 0.0
        self.idle_since = now
        self.taken_at = None
        self.thread = None
        self.stack = None
        self.reported = False
        self.examined = False
        return held

    def record_stack(self) -> None:
        """Note the stack of this checkout. Source lines are read only if it is ever shown."""
        self.stack = traceback.StackSummary.extract(
            traceback.walk_stack(sys._getframe(1)), limit=STACK_LIMIT, lookup_lines=False
        )

    def is_orphaned(self) -> bool:
        """True if the thread that took the connection has ended."""
        return self.thread is not None and not self.thread.is_alive()

    def detach(self) -> None:
        """Point the connection's socket at nothing: from this process it can reach no server."""
        conn = self.weak() if self.weak else None
        if conn is None or conn.closed:
            return
        null = os.open(os.devnull, os.O_RDWR)
        try:
            os.dup2(null, conn.pgconn.socket, inheritable=False)
        finally:
            os.close(null)

    def holder(self) -> Holder:
        stack = self.stack
        return Holder(
            pid=self.backend_pid,
            thread=self.thread.name if self.thread else "?",
            seconds=monotonic() - (self.taken_at or monotonic()),
            where=_own_line(stack) if stack else None,
            stack="".join(reversed(stack.format())) if stack else None,
        )


def _own_line(stack: traceback.StackSummary) -> str | None:
    """The innermost line of a stack (innermost first) that is the project's own."""
    for frame in stack:
        if not frame.filename.startswith(_plumbing()):
            return f"{frame.filename}:{frame.lineno} in {frame.name}"
    return None


@cache
def _plumbing() -> tuple[str, ...]:
    specs = (find_spec(name) for name in PLUMBING)
    packages = [path for spec in specs if spec for path in spec.submodule_search_locations or ()]
    stdlib = sysconfig.get_path("stdlib")
    return (
        *(os.path.join(path, "") for path in packages),
        *(os.path.join(stdlib, name) for name in ("contextlib.py", "threading.py")),
    )
