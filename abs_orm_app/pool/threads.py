"""The pool's threads: starting one never waits, and none outlives the process.

`threading.Thread.start` waits until the new thread reports that it runs. If memory is too short for
that, it waits forever, and an exception in the waiting thread leaves the start half done.
"""

from __future__ import annotations

from _thread import get_ident, get_native_id, start_new_thread
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

from abs_orm_app.pool.clock import monotonic

START_TIMEOUT = 1.0  # seconds; a thread that has not started by then never will


class _Token:
    """Only its thread refers to it, so it is freed when the thread ends, however it ends."""

    __slots__ = ("__weakref__",)


class Worker:
    """Shows whether a thread is running, or about to run."""

    __slots__ = ("_at", "_begun", "_ended", "_token")

    def __init__(self) -> None:
        self._at = monotonic()
        self._begun = self._ended = False
        self._token: Callable[[], object] = _Token

    @property
    def alive(self) -> bool:
        if self._ended or self._token() is None:
            return False
        return self._begun or monotonic() - self._at < START_TIMEOUT

    @property
    def running(self) -> bool:
        """True from the start of the thread until its end."""
        return self._begun and self.alive

    def end(self) -> None:
        """Record that the thread has finished, or could not be started."""
        self._ended = True


@dataclass(frozen=True)
class Running:
    """A running thread: its name, and its ids in Python and in the operating system."""

    name: str
    ident: int
    native_id: int


_running: dict[int, Running] = {}


def start(
    name: str, function: Callable[..., object], *args: object, worker: Worker | None = None
) -> Worker:
    """Call `function` in a new thread and return its `worker`, or a new one.

    Raises `RuntimeError` or `MemoryError` if no thread can be started. A thread whose start fails
    later, for lack of memory, counts as ended.
    """
    worker = worker or Worker()
    token = _Token()
    worker._token = ref(token)
    try:
        start_new_thread(_run, (token, worker, name, function, args))
    except BaseException:
        worker.end()
        raise
    return worker


def running(name: str = "") -> list[Running]:
    """Return the pool's running threads whose names end with `name`."""
    return [thread for thread in list(_running.values()) if thread.name.endswith(name)]


def forget() -> None:
    """In a forked child: forget the threads, which are the parent's."""
    _running.clear()


def _run(_token: Any, worker: Any, name: Any, function: Any, args: Any) -> None:
    if not worker.alive:  # it started too late: another thread has taken over its work
        return
    worker._begun = True
    ident = get_ident()
    _running[ident] = Running(name, ident, get_native_id())
    try:
        function(*args)
    finally:
        _running.pop(ident, None)
        worker.end()
