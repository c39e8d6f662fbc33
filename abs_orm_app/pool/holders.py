"""Who holds a connection, what needs its session, and which line took it. For reports."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.entry import IN_TRANSACTION, AsyncTask, Entry, Frames

STACK_LIMIT = 40  # frames recorded at a checkout when tracing is on
PLUMBING = (
    "django",
    "asgiref",
    "psycopg",
    "psycopg_pool",
    "abs_orm_app",
)  # not the project's own code
_CALLED = {*PLUMBING, "django_async_backend", "contextlib", "asyncio"}


@dataclass(frozen=True)
class Pin:
    """What needs the session of a connection that is checked out."""

    reason: str  # one of a few, such as "transaction" or "setting": the label of a metric
    what: str  # such as "SET search_path"
    frames: Frames | None = None  # the stack that caused it, if it was recorded

    def __str__(self) -> str:
        """For example "SET search_path at shop/middleware.py:31 in __call__"."""
        return f"{self.what} at {self.where}" if self.where else self.what

    @property
    def where(self) -> str | None:
        """The line of the project that caused it."""
        return own_line(self.frames) if self.frames else None


TRANSACTION = Pin("transaction", "a transaction")
UNUSED = Pin("", "nothing")  # nothing needs the session, but its holder keeps it
PinOf = Callable[[Any], Pin | None]


@dataclass(frozen=True)
class Holder:
    """Who has a connection checked out."""

    pid: int  # of the server's backend
    thread: str
    seconds: float
    frames: Frames | None  # the stack that took it, when tracing is on
    pin: Pin | None = None  # None: nothing needs its session, or a statement is being executed
    unused: bool = False  # nothing needs its session, but it is kept
    is_task: bool = False  # `thread` is the name of an async task's function

    @property
    def who(self) -> str:
        """For example "thread 'MainThread'" or "task 'shop.views.stream'"."""
        return f"{'task' if self.is_task else 'thread'} {self.thread!r}"

    @property
    def where(self) -> str | None:
        """The line of the project that took it."""
        return own_line(self.frames) if self.frames else None

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of the project that took it, innermost first."""
        return tuple(own_lines(self.frames)) if self.frames else ()


def holder_of(entry: Entry, pin_of: PinOf) -> Holder:
    """Return who holds an entry's connection, and what needs its session. Never waits."""
    frames, thread, taken_at = entry.frames, entry.thread, entry.taken_at
    pin = _pin_of(entry, pin_of)
    return Holder(
        pid=entry.backend_pid,
        thread=thread.name if thread else "?",
        seconds=monotonic() - taken_at if taken_at else 0.0,
        frames=frames,
        pin=None if pin is UNUSED else pin,
        unused=pin is UNUSED,
        is_task=isinstance(thread, AsyncTask),
    )


def count_pins(in_use: Iterable[Entry], pin_of: PinOf) -> tuple[dict[str, int], int]:
    """Count the pinned connections by reason, and those that are kept but not needed."""
    pins = [_pin_of(entry, pin_of) for entry in in_use]
    reasons = Counter(pin.reason for pin in pins if pin is not None and pin is not UNUSED)
    return dict(reasons), sum(pin is UNUSED for pin in pins)


def _pin_of(entry: Entry, pin_of: PinOf) -> Pin | None:
    conn = entry.weak()
    if conn is not None and (pin := pin_of(conn)) is not None:
        return pin
    return TRANSACTION if entry.pgconn.transaction_status in IN_TRANSACTION else None


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


def task_of(frame: FrameType | None) -> AsyncTask:
    """Return this task, named by the project's innermost function from this frame outwards."""
    while frame is not None:
        module: str = frame.f_globals.get("__name__") or "?"
        if module.partition(".")[0] not in _CALLED:
            return AsyncTask(module, frame.f_code.co_qualname)
        frame = frame.f_back
    return AsyncTask("?", "?")


def own_line(frames: Frames) -> str | None:
    """The innermost line of a stack (innermost first) that is the project's own.

    Reads no file, because a thousand requests that time out may call it at the same time.
    """
    return next(own_lines(frames), None)


def own_lines(frames: Frames) -> Iterator[str]:
    """Yield the project's own lines of a stack, innermost first; without any, its packages'."""
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
    packages = (sys.modules.get(name) for name in PLUMBING)  # others are in no stack
    paths = (os.path.join(path, "") for package in packages if package for path in package.__path__)
    return (*paths, contextlib.__file__, threading.__file__)


# Installed packages and the standard library, including its frozen modules.
_LIBRARIES = (
    "<frozen ",
    *{
        os.path.join(sysconfig.get_path(name), "")
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    },
)
