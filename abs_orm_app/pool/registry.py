"""The pools of this process. A forked child starts with none. They are closed at exit."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from os import getpid
from typing import TYPE_CHECKING

from abs_orm_app.pool import threads

if TYPE_CHECKING:
    from abs_orm_app.pool.housekeeping import Housekeeping
    from abs_orm_app.pool.pool import HardenedPool

# Seconds to wait, before the process ends or forks, for connections that are being opened.
SETTLE_TIMEOUT = 1.0
LAST = -100  # priority of a child's exit hook: after finalizers that may query

# The pools by alias. No lock guards it: a pool is added by `setdefault` before it is opened, so if
# several threads build one at the same time, one wins, and the others are never opened.
pools: dict[str, HardenedPool] = {}

# Each closes the connections that this thread holds, without returning them to a pool or ending a
# transaction. Called at the end of the process, and in a forked child.
hang_up_hooks: list[Callable[[], None]] = []

_pid = getpid()
_closes_at_end = True
_ended = False
_fork_lock = threading.Lock()


def notice_fork() -> None:
    """Detect a child that was forked without Python's knowledge, as uWSGI does."""
    if _pid != getpid():
        with _fork_lock:  # several threads may call this at the same time
            if _pid != getpid():
                _start_clean()


def register_child_exit_hook() -> None:
    """In a forked child with its first pool: have the pool closed when the child ends.

    The children of multiprocessing do not run atexit handlers, but do run these finalizers.
    """
    global _closes_at_end
    util = sys.modules.get("multiprocessing.util")
    if util and not _closes_at_end:
        _closes_at_end = True
        util.Finalize(None, close_all, exitpriority=LAST)


def _every_pool() -> list[HardenedPool]:
    """All pools, also those without an alias, such as the drill's."""
    module = sys.modules.get("abs_orm_app.pool.pool")
    return module.every_pool() if module else []


def _housekeeping() -> Housekeeping | None:
    """The housekeeping of this process; None if no pool was ever needed."""
    module = sys.modules.get("abs_orm_app.pool.housekeeping")
    return module.housekeeping if module else None


def _settle() -> None:
    """Before a fork: leave no connection half open.

    With gevent the child has its parent's greenlets, too, and both would use the same socket.
    """
    notice_fork()
    for pool in _every_pool():
        pool.settle(SETTLE_TIMEOUT)
    if housekeeping := _housekeeping():
        housekeeping.pause(SETTLE_TIMEOUT)


def _resume() -> None:
    """After a fork, in the parent: continue to fill the pools."""
    if housekeeping := _housekeeping():
        housekeeping.resume()
    for pool in _every_pool():
        pool.resume()


def _start_clean() -> None:
    """In a forked child: leave the parent's pools and connections to the parent."""
    global _pid, _closes_at_end, _ended
    _closes_at_end = _ended = False
    pools.clear()
    inherited = _every_pool()
    threads.forget()
    if housekeeping := _housekeeping():
        housekeeping.reset()
    for pool in inherited:
        pool.abandon()
    if inherited:
        _hang_up()
    _pid = getpid()


def pools_are_closed() -> bool:
    """True once the pools have been closed at the end of the process."""
    return _ended


def comes_after_the_end() -> bool:
    """True for the main thread, once the pools have been closed at the end of the process.

    Handlers that were registered before this module was imported run after its own.
    """
    return _ended and threading.current_thread() is threading.main_thread()


def close_all() -> None:
    """At the end of the process: close all sessions, so that the server logs no lost client."""
    global _ended
    notice_fork()
    _ended = True
    mine = _every_pool()
    for pool in mine:
        pool.close_for_good(SETTLE_TIMEOUT)
    if mine:
        _hang_up()


def _hang_up() -> None:
    for hang_up in hang_up_hooks:
        hang_up()


os.register_at_fork(before=_settle, after_in_parent=_resume, after_in_child=_start_clean)
atexit.register(close_all)
