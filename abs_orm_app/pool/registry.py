"""A pool belongs to one process: a forked child starts with none, and the end closes it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from abs_orm_app.pool.ending import close_for_good, resume, settle

if TYPE_CHECKING:
    from abs_orm_app.pool.housekeeping import Housekeeping
    from abs_orm_app.pool.pool import HardenedPool

# Seconds to wait for connections that are being opened, before the end of the process, or a fork.
SETTLE_TIMEOUT = 1.0
LAST = -100  # priority of what ends a child, after finalizers that may query

# This process's, by alias. No lock guards it: a pool is added by `setdefault` before it is opened,
# so that of several that are built at once one counts, and the others were never more than objects.
pools: dict[str, HardenedPool] = {}

# Each closes what this thread holds of the pools, without a word to a pool or a transaction. Called
# at the end of the process, and in a forked child.
hang_up_hooks: list[Callable[[], None]] = []

_pid = os.getpid()
_closes_at_end = True
_ended = False
_fork_lock = threading.Lock()


def notice_fork() -> None:
    """Look whether this is a child that was forked without Python's knowledge, as uWSGI does."""
    if _pid != os.getpid():
        with _fork_lock:  # its threads may come here together
            if _pid != os.getpid():
                _start_clean()


def close_at_childs_end() -> None:
    """In a forked child with its first pool: see to it that the pool is closed at the end.

    The children of multiprocessing and of Celery run no atexit handlers; this is what they run.
    """
    global _closes_at_end
    util = sys.modules.get("multiprocessing.util")
    if util and not _closes_at_end:
        _closes_at_end = True
        util.Finalize(None, _close_all, exitpriority=LAST)


def _every_pool() -> list[HardenedPool]:
    """Those of no alias too, such as the drill's. None, if none was ever needed."""
    module = sys.modules.get("abs_orm_app.pool.pool")
    return list(module.every_pool) if module else []


def _housekeeping() -> Housekeeping | None:
    """The one of this process; None, if no pool was ever needed."""
    module = sys.modules.get("abs_orm_app.pool.housekeeping")
    return module.housekeeping if module else None


def _settle() -> None:
    """Before a fork: leave no connection half open.

    With gevent the child has its parent's greenlets, too: both would talk on the same socket.
    """
    notice_fork()
    for pool in _every_pool():
        settle(pool, SETTLE_TIMEOUT)
    if housekeeping := _housekeeping():
        housekeeping.pause(SETTLE_TIMEOUT)


def _resume() -> None:
    """After a fork, in the parent: go on filling the pools."""
    if housekeeping := _housekeeping():
        housekeeping.resume()
    for pool in _every_pool():
        resume(pool)


def _start_clean() -> None:
    """In a forked child: leave the parent's pools and connections to the parent."""
    global _pid, _closes_at_end, _ended
    _closes_at_end = _ended = False
    pools.clear()
    inherited = _every_pool()
    if housekeeping := _housekeeping():
        housekeeping.reset()
    for pool in inherited:
        pool.abandon()
    if inherited:
        _hang_up()
    _pid = os.getpid()


def has_ended() -> bool:
    """True once the pools have been closed at the end of the process."""
    return _ended


def comes_after_the_end() -> bool:
    """True for the main thread, once the pools have been closed at the end of the process.

    Handlers that were registered before this module was imported run after its own.
    """
    return _ended and threading.current_thread() is threading.main_thread()


def _close_all() -> None:
    """At the end of the process: say goodbye to the server, so that it logs no lost client."""
    global _ended
    notice_fork()
    _ended = True
    mine = _every_pool()
    for pool in mine:
        close_for_good(pool, SETTLE_TIMEOUT)
    if mine:
        _hang_up()


def _hang_up() -> None:
    for hang_up in hang_up_hooks:
        hang_up()


os.register_at_fork(before=_settle, after_in_parent=_resume, after_in_child=_start_clean)
atexit.register(_close_all)
