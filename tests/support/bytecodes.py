"""At a bytecode of the app's code, raise an exception, or let another thread act.

The suite's sweeps try each `STRIDE`-th bytecode; SWEEP_STRIDE=1 has them try all.
"""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import get_ident
from types import CodeType, FrameType
from typing import Any

import pytest

import abs_orm_app
from tests.support.pools import uncollected

POOL = str(Path(abs_orm_app.__file__).parent / "pool")
BACKENDS = str(Path(abs_orm_app.__file__).parent / "backends")
STRIDE = int(os.environ.get("SWEEP_STRIDE", "3"))


# From Python 3.14 on, a signal may arrive between `with lock` and its block. Then psycopg's own
# lock stays locked, in every pool, and the interrupted thread waits for ever at its next statement.
signals_leave_locks = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="a signal may leave psycopg's lock locked"
)


class Interrupted(BaseException):
    """The exception that is thrown."""


def interruption(at: int) -> AbstractContextManager[None]:
    """Throw `Interrupted` at the `at`-th bytecode of the pool's code that this thread executes."""

    def throw() -> None:
        raise Interrupted

    return acting(at, throw, POOL)


def paused(
    function: Callable[[], Any], at: int, meanwhile: Callable[[], None], within: str = POOL
) -> Any:
    """Run `function`, and `meanwhile` before its `at`-th bytecode in the code in `within`."""
    with acting(at, meanwhile, within):
        return function()


@contextmanager
def acting(at: int, act: Callable[[], None], within: str) -> Iterator[None]:
    """Call `act` once, before the `at`-th bytecode in `within` that this thread executes."""
    left = at

    def count() -> None:
        nonlocal left
        left -= 1
        if left == -1:
            act()

    yield from _each(count, within)


def throw() -> None:
    raise Interrupted


def sweep(
    work: Callable[[], object],
    act: Callable[[], object],
    within: str,
    check: Callable[[int], object],
    *errors: type[Exception],
) -> int:
    """Do the work again and again, with `act` at one bytecode after the other, and `check` each.

    The work may end with `Interrupted` or one of `errors`. Garbage is only collected by `act`.
    Returns the number of the last bytecode.
    """
    with uncollected():
        for at in count(0, STRIDE):
            happened = False

            def happen() -> None:
                nonlocal happened
                happened = True
                act()

            with suppress(Interrupted, *errors), acting(at, happen, within):
                work()
            check(at)
            if not happened:
                return at
    raise AssertionError


@contextmanager
def each_bytecode(see: Callable[[], None], within: str) -> Iterator[None]:
    """Call `see` before each bytecode in `within` that this thread executes."""
    yield from _each(see, within)


_entries: dict[CodeType, frozenset[int]] = {}


def _enters_handler(code: CodeType, offset: int) -> bool:
    """True for the bytecode before `except`. No signal arrives there, and Python would never free
    the exception that is being handled.
    """
    offsets = _entries.get(code)
    if offsets is None:
        found = dis.get_instructions(code)
        offsets = frozenset(each.offset for each in found if each.opname == "PUSH_EXC_INFO")
        _entries[code] = offsets
    return offset in offsets


if sys.version_info >= (3, 12):

    def _each(see: Callable[[], None], within: str) -> Iterator[None]:
        """Here a trace function would see the bytecodes of a frame only in its next call."""
        monitoring = sys.monitoring
        tool, instruction = monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION
        thread = get_ident()

        def filtered(code: CodeType, offset: int) -> Any:
            if not code.co_filename.startswith(within):
                return monitoring.DISABLE
            if get_ident() == thread and not _enters_handler(code, offset):
                see()
            return None

        monitoring.use_tool_id(tool, __name__)
        try:
            monitoring.register_callback(tool, instruction, filtered)
            monitoring.set_events(tool, instruction)
            yield
        finally:
            monitoring.set_events(tool, monitoring.events.NO_EVENTS)
            monitoring.register_callback(tool, instruction, None)
            monitoring.free_tool_id(tool)

else:

    def _each(see: Callable[[], None], within: str) -> Iterator[None]:
        def trace(frame: FrameType, event: str, _: Any) -> Any:
            if not frame.f_code.co_filename.startswith(within):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            if event == "opcode" and not _enters_handler(frame.f_code, frame.f_lasti):
                see()
            return trace

        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(None)
