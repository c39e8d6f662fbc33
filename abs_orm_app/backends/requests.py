"""The requests that the threads of this process serve: when they begin, and when they are over.

Django tells of both, but its end of a request may never come: where a web server does not close
responses, and where a thread ends in the middle of one. A lease of a request (`Lease.wanted`) ends
with it all the same.
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
    """In the storage of a thread: at its end, it has what the thread has left behind taken back.

    A web server may end a request in a way that Django does not see: gunicorn's asgi worker
    cancels it a few seconds after its client has gone, and `request_finished` with it.
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
    """What the leases of a request look at: not empty once it is over."""


class _Trace:
    """In the environ of a WSGI request: once its server has dropped that, nobody can close the
    response any more, so the request is over, although Django does not hear of it.
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
    unended = 0  # requests in a row that have not ended, and another one began
    tests = 0  # requests of Django's test client that have not ended; their end has no sender

    def __init__(self) -> None:
        self.request = _Request()  # the last one
        self._farewell = _Farewell()


thread = _Thread()
# Of WSGI. Not empty: a web server of this process has ended a request; there is one that does not
# end its requests, which this thread has noticed; the log says so.
_ending: list[bool] = []
unending: list[int] = []
_said: list[bool] = []


def _begin_request(sender: Any = None, environ: Any = None, **_: object) -> None:
    if _is_of("django.test.client", sender):
        thread.tests += 1  # a part of what the thread does, be that a request
        return
    if thread.in_request and _is_served(sender):
        thread.unended += 1
        # Where requests end, one that was broken off is no sign: it takes two in a row.
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
    """True for a request of WSGI, by Django's handler for servers."""
    return _is_of("django.core.handlers.wsgi", sender)


def _is_of(module: str, sender: Any) -> bool:
    """True if the sender is a class of this module, or a subclass of one.

    It does not import the class: if another thread throws an exception into an import, the lock of
    that module stays locked, and every request would wait for it.
    """
    return any(each.__module__ == module for each in getattr(sender, "__mro__", ()))


def _notice_unending(*, is_over: bool) -> None:
    """Requests of this thread do not end, or they end before Django hears of it.

    `is_over`: the trace of the last one has told so, and no more is needed.
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
