"""Finds out who calls the engine. Only these promises make its behaviour depend on the caller:

- A project that asks for psycopg's connection keeps the lease; Django, which asks for each query,
  does not (`docs/leases.md`). Nor does psycopg, which reads what `info` shows.
- An async cursor of a class of the project's own is not watched, so its session is cleaned.
- After a request or a task, no block of `atomic` is open, whatever an exception has left behind.
- Celery's fixup closes the pool of a prefork child before and after each task, because a fork would
  share a pool (Celery #10554). This pool is never shared, so it may live as long as the child.
"""

from __future__ import annotations

import sys
from typing import Any

from django.core.signals import request_finished
from django.db import close_old_connections
from django.db.transaction import Atomic

from abs_orm_app.backends.requests import thread
from abs_orm_app.pool.registry import close_all

TRUSTED = frozenset({"abs_orm_app", "django"})  # they ask for the connection, and do not keep it
_BETWEEN = frozenset({"django.utils.asyncio", "django.utils.connection"})  # skipped: not the caller
_FIXUP = "celery.fixups.django"
_ATOMIC_STEPS = (Atomic.__enter__.__code__, Atomic.__exit__.__code__)


def asked_by_project() -> bool:
    """True if the project's code, or a package's, asked the caller for the connection."""
    frame: Any = sys._getframe(2)
    own = sys._getframe(1).f_globals
    while frame is not None and frame.f_globals is own:
        frame = frame.f_back
    while frame is not None:
        name: str = frame.f_globals.get("__name__") or ""
        if name not in _BETWEEN:
            return name.partition(".")[0] not in TRUSTED
        frame = frame.f_back
    return False


def asked_by_psycopg() -> bool:
    """True if psycopg itself asked the caller."""
    name: str = sys._getframe(2).f_globals.get("__name__") or ""
    return name.startswith("psycopg.")


def user_of(steps: Any) -> Any:
    """The cursor or connection whose method these steps of psycopg are of; None if they ended."""
    frame = getattr(steps, "gi_frame", None)
    return frame and frame.f_locals.get("self")


def is_in_atomic_step(frame: Any) -> bool:
    """True if an outer frame is `atomic` entering or leaving a block."""
    while (frame := frame.f_back) is not None:
        if frame.f_code in _ATOMIC_STEPS:
            return True
    return False


def is_between_requests(frame: Any, request: Any) -> bool:
    """True if called by Celery around a task, or by Django's signals between two requests: a block
    that was opened in `request` is then one that an exception has left behind.

    A project may call `close_old_connections` within a block, which does not end the block. Nor
    does a request that a view, a task or a command makes to an application of its own process.
    """
    while (frame := frame.f_back) is not None:
        if frame.f_code is close_old_connections.__code__:
            signal = frame.f_locals["kwargs"].get("signal")
            ends = signal is request_finished and request is thread.request
            return ends or (signal is not None and bool(request))
        if frame.f_globals.get("__name__") == _FIXUP:
            return True
    return False


def keeps_the_pool() -> bool:
    """True if Celery's fixup called the caller because a task starts or ends.

    The pool is then closed when the child ends, which runs no exit handlers. The fixup also closes
    the parent's pool, before the children are forked: that is outside of a task, so it is allowed.
    """
    caller: Any = sys._getframe(2)
    if caller.f_globals.get("__name__") != _FIXUP:
        return False
    import celery  # type: ignore[import-untyped]

    if not celery.current_task:
        return False
    celery.signals.worker_process_shutdown.connect(_close, dispatch_uid=__name__)
    return True


def _close(**_: object) -> None:
    close_all()
