"""Tracks the requests that this process's threads serve: when they start, and when they end.

Django signals both, but `request_finished` may never come: if a web server does not close
responses, or if a thread ends in the middle of one. A lease of a request (`Lease.wanted`) must end
with it even then.
"""

from __future__ import annotations

import logging
import sys
import threading
from _thread import get_ident
from collections.abc import Callable
from os import getpid
from typing import Any

from django.core.signals import request_finished, request_started

from abs_orm_app.backends.lease import ALWAYS, LEASE, Lease
from abs_orm_app.pool.registry import pools

logger = logging.getLogger("abs_orm_app.pool")


class _Farewell:
    """Stored in a thread's local storage: when the thread ends, what it left behind is taken back.

    A web server may end a request without Django noticing: gunicorn's asgi worker cancels it, and
    `request_finished` with it, a few seconds after its client has gone.
    """

    def __init__(self) -> None:
        self._thread = threading.current_thread()
        self._pid = getpid()

    def __del__(self, ends_with_python: Callable[[], bool] = sys.is_finalizing) -> None:
        if ends_with_python() or self._pid != getpid():  # a forked child frees its parent's threads
            return
        for pool in list(pools.values()):
            if any(entry.thread is self._thread for entry in pool.core.in_use):
                pool.core.call_housekeeping()


class _Request(list[bool]):
    """`Lease.wanted` of the leases of a request: not empty once the request is over."""


class _Trace:
    """Stored in the environ of a WSGI request: once the server has dropped that, the response can
    no longer be closed, so the request is over, although Django is not told.
    """

    def __init__(self, request: _Request) -> None:
        self._request = request

    def __del__(self) -> None:
        if not self._request:
            self._request.append(True)
            _end_leases(self._request)


def _end_leases(request: Any = None) -> None:
    """End the idle leases of a request that is over; of all requests if None."""
    for pool in list(pools.values()):
        for entry in pool.core.in_use:
            lease: Lease | None = getattr(entry.weak(), LEASE, None)
            if lease is None:
                continue
            if request is None and type(lease.wanted) is _Request:
                lease.wanted = ALWAYS
            elif lease.request is request:
                lease.pinned = None  # a changed session is kept until the request ends
            else:
                continue
            lease.end_if_idle()


class _Thread(threading.local):
    in_request = False
    unended = 0  # consecutive requests that had not ended when the next one started
    tests = 0  # requests of Django's test client that have not ended; their end has no sender

    def __init__(self) -> None:
        self.request = _Request()  # the current or the last one
        self._farewell = _Farewell()


thread = _Thread()
# For WSGI. `_ending`: not empty once a web server of this process has ended a request. `unending`:
# threads that have noticed a server that does not. `_said`: not empty once that was logged.
_ending: list[bool] = []
unending: list[int] = []
_said: list[bool] = []


def _begin_request(sender: Any = None, environ: Any = None, **_: object) -> None:
    if _is_of("django.test.client", sender):
        thread.tests += 1  # part of what the thread is doing, which may be a request itself
        return
    if thread.in_request and _is_served(sender):
        thread.unended += 1
        # If requests do end, a single broken-off one proves nothing: it takes two in a row.
        if thread.unended > len(_ending) and not unending:
            _notice_unending(is_over=bool(thread.request))
    thread.in_request = True
    thread.request = _Request()
    if environ is not None:
        environ["abs_orm_app.request"] = _Trace(thread.request)


def _end_request(sender: Any = None, **_: object) -> None:
    if sender is None and thread.tests:
        thread.tests -= 1
        return
    thread.in_request = False
    thread.unended = 0
    thread.request[:] = [True]  # a receiver before this one may have queried
    if (not _ending or get_ident() in unending) and _is_served(sender):
        _ending[:] = [True]
        unending.clear()


def _is_served(sender: Any) -> bool:
    """True for a WSGI request: its sender is Django's handler for web servers."""
    return _is_of("django.core.handlers.wsgi", sender)


def _is_of(module: str, sender: Any) -> bool:
    """True if the sender is a class of this module, or a subclass of one.

    It does not import the class: if an exception from another thread interrupts an import, the lock
    of that module stays locked, and every request would wait for it.
    """
    return any(each.__module__ == module for each in getattr(sender, "__mro__", ()))


def _notice_unending(*, is_over: bool) -> None:
    """Handle requests of this thread that do not end, or that end without Django being told.

    `is_over`: the trace of the last one has ended its leases, so only the log message is left.
    """
    if not is_over:
        unending.append(get_ident())
        _end_leases()  # also of other threads, whose last request has not ended
    if _said:
        return
    _said.append(True)
    logger.warning(
        "A request started in a thread whose last request has not ended: the web server does not"
        " call close() on Django's responses, which WSGI requires (a2wsgi does so, Starlette's"
        " WSGIMiddleware does not). Connections are returned as soon as nothing needs them, as"
        " DB_POOL_RELEASE=transaction does."
    )


request_started.connect(_begin_request)
request_finished.connect(_end_request)
