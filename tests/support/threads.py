"""Have threads of the pool fail to start, as where the process lacks memory or threads.

with fails(ENDS_BEFORE_ITS_FUNCTION, 2):
    ...  # the third thread that the pool starts ends at once
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tests.support.bytecodes import POOL

Function = Callable[..., object]
Failure = Callable[[Function], Function]  # it raises, or returns what the thread calls instead
NAMES = ("start_new_thread", "_start_new_thread", "_start_joinable_thread")


def refused(_: Function) -> Function:
    """The process, or its account, has no thread left."""
    raise RuntimeError("can't start new thread")


def no_memory(_: Function) -> Function:
    """There is no memory for what describes the thread."""
    raise MemoryError


def ends_before_its_function(_: Function) -> Function:
    """The thread begins, and has no memory for its first frame."""

    def end(*_: object, **__: object) -> None:
        raise MemoryError

    return end


FAILURES = (refused, no_memory, ends_before_its_function)


@contextmanager
def fails(failure: Failure, first: int = 0, count: int = 1) -> Iterator[Callable[[], int]]:
    """Have `count` starts of a thread fail, after `first` that succeed.

    Yields a function that returns how often the pool has tried to start one.
    """
    starts = 0

    def apply(function: Function) -> Function:
        nonlocal starts
        starts += 1
        return failure(function) if first < starts <= first + count else function

    with starting(apply):
        yield lambda: starts


@contextmanager
def starting(change: Failure) -> Iterator[None]:
    """Have `change` decide what a thread runs that is started by the pool's code."""
    with patch.object(sys, "unraisablehook", _quiet):
        undo = []
        modules = [module for name, module in sys.modules.items() if name.startswith("abs_orm_app")]
        for module in [_thread, threading, *modules]:
            for name in NAMES:
                if original := getattr(module, name, None):
                    undo.append((module, name, original))
                    setattr(module, name, _changed(original, change))
        try:
            yield
        finally:
            for module, name, original in undo:
                setattr(module, name, original)


def _changed(original: Callable[..., Any], change: Failure) -> Callable[..., Any]:
    def start(function: Function, *args: Any, **kwargs: Any) -> Any:
        return original(change(function) if _is_the_pools() else function, *args, **kwargs)

    return start


def _is_the_pools() -> bool:
    frame: Any = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(POOL):
            return True
        frame = frame.f_back
    return False


def _quiet(_: object) -> None: ...
