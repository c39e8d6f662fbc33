"""Closes connections: at once, or after a cancel request if the server is executing a statement.

A server that is executing a statement does not notice that its client is gone: the session would
continue, above the pool's limit. So a thread of the pool cancels the statement, closes the
connection and waits until the server has closed its side. The slot is free only then, or after
`CLOSE_TIMEOUT` seconds if the server does not answer.

A libpq handle that a frame may still use is never freed. For a connection that was
garbage-collected, the pool only drops its own reference to the handle; if a frame still has it
after a moment, its socket is shut down.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import sleep
from typing import Any
from weakref import finalize, ref

import psycopg
from psycopg import pq
from psycopg.pq import PollingStatus, TransactionStatus

from abs_orm_app.pool import threads
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.entry import AnyConnection, Entry, shut_down
from abs_orm_app.pool.liveness import ANSWERING, reach
from abs_orm_app.pool.steps import Poller

CLOSE_TIMEOUT = 10.0  # seconds after which a slot is freed even if the server does not answer
CANCEL_TIMEOUT = 5.0  # seconds for a cancel request; psycopg's own value for Ctrl-C
THREADS = 4  # cancel requests at a time
OVERDUE = 1.0  # additional seconds, after which housekeeping frees the slot for a stuck thread
MOMENT = 0.5  # seconds that a finalizer may use the handle of a lost connection, or an end takes


def spoil(conn: Any, entry: Entry) -> None:
    """Close a connection that is in use, because what happened on it makes it unfit for others.

    The holder's next statement fails, and the pool cancels what the server may be executing.
    """
    entry.spoiled += 1
    entry.cancel = entry.cancel or cancel_handle(conn.pgconn)  # its holder may have closed it
    if isinstance(conn, psycopg.AsyncConnection):
        entry.shut_down()  # a waiting task must first remove the handle from its loop
    else:
        conn.pgconn.finish()


class Closer:
    """Closes the connections of one pool. `freed`: called with an entry whose slot is free."""

    def __init__(self, name: str, freed: Callable[[Entry], object]) -> None:
        self._name, self._freed = name, freed
        self._reset()

    def abandon(self) -> None:
        """In a forked child: forget the parent's connections and threads, and cancel nothing."""
        self._reset()
        self._cancels = False

    def _reset(self) -> None:
        self._cancels = True  # False: the statements are the parent's
        # Lost connections whose handle a frame still has: since when, and a weak reference to it.
        self._lost: dict[Entry, tuple[float, Callable[[], Any]]] = {}
        # Connections being cancelled, and until when. Whoever removes one frees its slot.
        self._ending: dict[Entry, float] = {}
        self._to_cancel: deque[tuple[Entry, AnyConnection | None]] = deque()
        self._threads: list[threads.Worker] = []

    @property
    def busy(self) -> bool:
        return bool(self._ending or self._lost)

    def end(self, conn: AnyConnection) -> bool:
        """Close a connection that no other thread has; False if its slot is freed later."""
        entry: Entry = conn._pool_entry  # type: ignore[attr-defined]
        if conn.lock.locked():  # another thread uses its handle
            return self.lose(entry)
        if entry.cancel is None:
            entry.cancel = cancel_handle(entry.pgconn)
        if entry.cancel is None:
            close(conn, entry)
            return True
        self._cancel_soon(entry, conn)
        return False

    def lose(self, entry: Entry) -> bool:
        """End a connection whose handle a frame may still use, such as a garbage-collected one;
        False if its slot is freed later.
        """
        handle, entry.pgconn = entry.pgconn, CLOSED
        if handle is CLOSED:
            return False  # this is already in progress
        entry.cancel = entry.cancel or cancel_handle(handle)
        gone = ref(handle)
        del handle
        if gone() is not None:
            self._lost[entry] = (monotonic(), gone)
        elif entry.cancel is not None:
            self._cancel_soon(entry, None)
        else:
            entry.twin.close()
            return True
        return False

    def send(self, cancel: Any) -> None:
        """Cancel a statement, in a thread, on a connection that stays with its owner."""
        with suppress(RuntimeError, MemoryError):
            threads.start(f"{self._name}-closer", _send, cancel, CANCEL_TIMEOUT)

    def tend(self, now: float) -> float:
        """Free overdue slots, and start threads; return when to run again."""
        due = inf
        for entry, (began, gone) in list(self._lost.items()):
            if gone() is not None and now < began + MOMENT:
                due = min(due, began + MOMENT)
            elif self._lost.pop(entry, None) is not None:
                if gone() is not None:
                    shut_down(entry.twin, socket.SHUT_WR)  # the server then closes its side
                self._cancel_soon(entry, None)
        for entry, until in list(self._ending.items()):
            if now >= until + OVERDUE:
                self._free(entry)
            else:
                due = min(due, until + OVERDUE)
        if self._to_cancel:
            self._start()
        return due

    def _cancel_soon(self, entry: Entry, conn: AnyConnection | None) -> None:
        self._ending[entry] = monotonic() + CLOSE_TIMEOUT
        self._to_cancel.append((entry, conn))
        self._start()

    def _start(self) -> None:
        self._threads = [thread for thread in self._threads if thread.alive]
        if len(self._threads) < min(THREADS, len(self._to_cancel)):
            with suppress(RuntimeError, MemoryError):  # `tend` tries again
                self._threads.append(threads.start(f"{self._name}-closer", self._run))

    def _run(self) -> None:
        while self._to_cancel:
            try:
                entry, conn = self._to_cancel.popleft()
            except IndexError:
                return
            self._cancel(entry, conn)

    def _cancel(self, entry: Entry, conn: AnyConnection | None) -> None:
        until = self._ending.get(entry, -inf)
        cancel, entry.cancel = entry.cancel, None
        left = until - monotonic()
        if cancel is not None and left > 0 and self._cancels:
            _send(cancel, min(CANCEL_TIMEOUT, left))
        if conn is not None and not conn.lock.locked():
            conn._pool = None
            conn.close()
        _wait_for_end(entry.twin, until)
        if entry.shut:
            sleep(MOMENT)  # for the server to end the session
        self._free(entry)

    def _free(self, entry: Entry) -> None:
        if self._ending.pop(entry, None) is not None:
            entry.shut_down()
            entry.twin.close()
            self._freed(entry)


def close(conn: AnyConnection, entry: Entry) -> None:
    """Close a connection that no other thread has."""
    conn._pool = None
    conn.close()
    entry.twin.close()


def _wait_for_end(twin: socket.socket, until: float) -> None:
    """Wait until the server has closed its side, which it does when the session has ended."""
    poller = Poller()
    with suppress(OSError, ValueError):  # already closed
        poller.register(twin, select.POLLIN)
        while (left := until - monotonic()) > 0:
            if poller.poll(left * 1000) and _is_at_end(twin):
                return


def _is_at_end(twin: socket.socket) -> bool:
    try:
        return not twin.recv(65536)
    except BlockingIOError:
        return False
    except OSError:
        return True


def cancel_handle(pgconn: Any) -> Any:
    """Return an object that can cancel the running statement; None if none is running."""
    if pgconn.transaction_status != TransactionStatus.ACTIVE:
        return None
    with suppress(psycopg.Error, OSError):
        return (
            pgconn.cancel_conn()
            if psycopg.capabilities.has_cancel_safe()
            else _BlockingCancel(pgconn)
        )
    return None


class _BlockingCancel:
    """Cancels with libpq before version 17, which waits without a time limit.

    psycopg's C code holds the GIL meanwhile, which would block all threads of the process; ctypes
    releases it. The request goes only to a server that has just answered a probe: another one would
    cancel nothing, and block this thread.
    """

    def __init__(self, pgconn: Any) -> None:
        with socket.socket(fileno=os.dup(pgconn.socket)) as twin:
            self._server = twin.getpeername()
        if pq.__impl__ == "python":
            self._cancel: Callable[[], object] = pgconn.get_cancel().cancel
            return
        libpq = ctypes.CDLL(sys.modules[type(pgconn).__module__].__file__)  # it is linked to libpq
        libpq.PQgetCancel.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(libpq.PQgetCancel(ctypes.c_void_p(pgconn.pgconn_ptr)))
        finalize(self, libpq.PQfreeCancel, handle).atexit = False  # a thread may still use it then
        text = ctypes.create_string_buffer(256)
        self._cancel = lambda: libpq.PQcancel(handle, text, len(text))

    def send(self, timeout: float) -> None:
        if reach(self._server, timeout) == ANSWERING:
            self._cancel()


def _send(cancel: Any, timeout: float) -> None:
    with suppress(psycopg.Error):  # the session has ended, or nothing answers
        if isinstance(cancel, _BlockingCancel):
            cancel.send(timeout)
        else:
            _drive(cancel, monotonic() + timeout)


def _drive(cancel: Any, deadline: float) -> None:
    cancel.start()
    while (status := cancel.poll()) in _WAITS:
        poller = Poller()
        poller.register(cancel.socket, _WAITS[status])
        if not poller.poll(max(0.0, deadline - monotonic()) * 1000):
            return


def _closed_handle() -> Any:
    handle = pq.PGconn.connect_start(b"host=/nowhere")
    handle.finish()
    return handle


_WAITS = {PollingStatus.READING: select.POLLIN, PollingStatus.WRITING: select.POLLOUT}
CLOSED: Any = _closed_handle()
