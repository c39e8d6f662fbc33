"""Who calls? All behaviour of the engine that depends on it is here, for a promise that needs it.

- A project that asks for psycopg's connection keeps the lease; Django, which asks for each query,
  does not (`docs/leases.md`).
- At the end of a request or a task no block of `atomic` is open, whatever an exception has left.
- Celery's fixup closes the pool of a prefork child before and after each task, because a fork would
  share a pool (Celery #10554). Ours is never shared, so it may live as long as the child.
"""

from __future__ import annotations

import sys
from typing import Any

from django.core.handlers.base import BaseHandler
from django.db import close_old_connections
from django.db.transaction import Atomic

from abs_orm_app.pool.registry import close_all

TRUSTED = frozenset({"abs_orm_app", "django"})  # they ask for the connection, and do not keep it
_BETWEEN = frozenset({"django.utils.asyncio", "django.utils.connection"})  # the caller is outside
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


def is_in_atomic_step(frame: Any) -> bool:
    """True if `atomic` begins or ends a block in a frame that called this one."""
    while (frame := frame.f_back) is not None:
        if frame.f_code in _ATOMIC_STEPS:
            return True
    return False


def is_between_requests(frame: Any) -> bool:
    """True if a signal of Django calls, or Celery before and after a task: no block is open then.

    A project may call `close_old_connections` in a block; that is not the end of it. Nor is a
    request that a view makes to an application of its own process.
    """
    told = False
    while (frame := frame.f_back) is not None:
        if frame.f_code is close_old_connections.__code__:
            told = "signal" in frame.f_locals["kwargs"]
            if not told:
                return False
        if frame.f_code is BaseHandler.get_response.__code__:
            return False
        if frame.f_globals.get("__name__") == _FIXUP:
            return True
    return told


def keeps_the_pool() -> bool:
    """True if Celery's fixup called the caller because a task begins or ends.

    Then the pool is closed when the child ends, which runs no exit handlers. The fixup also closes
    the pool of the parent, before the children are forked: that is in no task, and is done.
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
