"""Celery's Django fixup, which closes the pool of a prefork child before and after each task.

It does so because a fork would share a pool (Celery #10554). Ours is never shared, because a
child begins with a new one, so it may live as long as the child.
"""

from __future__ import annotations

import sys
from typing import Any

from abs_orm_app.pool.registry import close_all

FIXUP = "celery.fixups.django"


def keeps_the_pool() -> bool:
    """True if the fixup called the caller because a task begins or ends.

    Then the pool is closed when the child ends, which runs no exit handlers. The fixup also closes
    the pool of the parent, before the children are forked: that is in no task, and is done.
    """
    caller: Any = sys._getframe(2)
    if caller.f_globals.get("__name__") != FIXUP:
        return False
    import celery  # type: ignore[import-untyped]

    if not celery.current_task:
        return False
    celery.signals.worker_process_shutdown.connect(_close, dispatch_uid=__name__)
    return True


def _close(**_: object) -> None:
    close_all()
