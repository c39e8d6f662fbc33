"""At a bytecode of the pool's code, raise an exception, or let another thread act."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import abs_orm_app

POOL = str(Path(abs_orm_app.__file__).parent / "pool")
BACKENDS = str(Path(abs_orm_app.__file__).parent / "backends")


class Interrupted(BaseException):
    """The exception that is thrown."""


class Interruption:
    """Throws `Interrupted` into the thread that calls it, at the `at`-th bytecode in the pool."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(POOL):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            self.left -= 1
            if self.left < 0:
                raise Interrupted
        return self


def paused(
    function: Callable[[], Any], at: int, meanwhile: Callable[[], None], within: str = POOL
) -> Any:
    """Run `function`, and `meanwhile` before its `at`-th bytecode in the code in `within`."""
    left = at

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(within):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            left -= 1
            if left == -1:
                meanwhile()
        return trace

    sys.settrace(trace)
    try:
        return function()
    finally:
        sys.settrace(None)
