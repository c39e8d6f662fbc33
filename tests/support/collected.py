"""Threads that end inside an iterator over rows, which only the garbage collector then closes.

The iterator has a server-side cursor. It is in a reference cycle, by a closure or by an exception
that was kept; the collector runs its `finally`, which sends to the server and waits for an answer.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from threading import Timer
from typing import Any

from tests.support.pools import LATE, Call

Rows = Callable[[list[int]], Iterator[Any]]  # appends the backend's pid to its argument

SUSPENDED = 0.3  # seconds; it must be more than housekeeping needs to see that one is lost


def by_closure(rows: Rows, pids: list[int]) -> None:
    def inner() -> Iterator[Any]:
        yield cycle
        yield from rows(pids)

    iterator = inner()
    cycle = [iterator]
    next(iterator)
    next(iterator)


def by_exception(rows: Rows, pids: list[int]) -> None:
    iterator = rows(pids)
    try:
        for _ in iterator:
            raise ValueError  # noqa: TRY301
    except ValueError as error:
        kept = error  # whose traceback refers to this frame
        assert kept.__traceback__


def collect_iterators(
    rounds: int, kinds: Sequence[Rows], serves: Callable[[], object], how: str
) -> None:
    """Lose an iterator in a thread, collect it, and check that requests are served; repeat.

    how: "suspended" if the backend does not answer while the iterator is collected.
    """
    gc.disable()
    for number in range(rounds):
        pids: list[int] = []
        times, kind = divmod(number, len(kinds))
        lose = (by_closure, by_exception)[times % 2]
        Call(lose, kinds[kind], pids).result(within=20)
        (pid,) = pids
        if how == "suspended":
            os.kill(pid, signal.SIGSTOP)
            timer = Timer(SUSPENDED, resume, [pid])
            timer.start()
        collects = Call(gc.collect)
        served = [Call(serves) for _ in range(2)]
        collects.result(within=20)
        for call in served:
            call.result(within=20 + LATE)
        if how == "suspended":
            timer.join()


def resume(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
