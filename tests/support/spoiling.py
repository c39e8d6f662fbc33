"""Interrupt a statement wherever Python runs signal handlers in psycopg's code; see who notices.

Python looks for a signal, and for an exception thrown by another thread, where a function begins,
after each call, and where a loop begins anew. An exception at any other bytecode of psycopg, such
as between a lock and its `with` block, cannot happen.
"""

from __future__ import annotations

import dis
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from threading import Timer
from time import monotonic
from types import CodeType
from typing import Any

import psycopg
import pytest

from tests.support.bytecodes import Interrupted, each_bytecode
from tests.support.pools import Call
from tests.support.servers import Server
from tests.support.sessions import Begin, Session

PSYCOPG = str(Path(psycopg.__file__).parent)
TABLES = (
    "CREATE TABLE kept (key bigint PRIMARY KEY, kind text)",
    "CREATE UNLOGGED TABLE scratch (n int)",
)
MANY = "INSERT INTO scratch VALUES (%s)"
ROWS = 3  # a few points more for each is one more to try
WRITE = "INSERT INTO kept VALUES (%s, %s) RETURNING key"
SOON = 12.0  # seconds for each step, on a busy machine; what takes longer hangs
STRIDE = 2  # such points from one interruption to the next


def executemany(session: Session) -> None:
    with session.cursor() as cursor:
        cursor.executemany(MANY, [(n,) for n in range(ROWS)])


def executemany_of_another_class(session: Session) -> None:
    """The project makes its cursor, and the pool does not know of it."""
    with psycopg.Cursor(session.handle()) as cursor:
        cursor.executemany(MANY, [(n,) for n in range(ROWS)])


def pipeline(session: Session) -> None:
    with session.pipeline(), session.cursor() as cursor:
        for n in range(ROWS):
            cursor.execute(MANY, [n])


def blocks(session: Session) -> None:
    for nested in (session.atomic, nullcontext):
        with session.atomic(), nested(), session.cursor() as cursor:
            cursor.execute(MANY, [0])


def sweep(server: Server, begin: Begin, statement: Callable[[Session], None]) -> None:
    """At each `STRIDE`-th point of the statement: the task writes next, then another request.

    A write that reported success must be there.
    """
    name = statement.__name__
    lost: list[str] = []
    with server.admin() as admin:
        admin.execute("TRUNCATE kept")
        for at in count(0, STRIDE):
            where = f"{name}, point {at}"
            thrown, wrote = _call(where, lost, _interrupted, begin, statement, at)
            _call(where, lost, _write, begin, 2 * at)
            rows = {key for (key,) in admin.execute("SELECT key FROM kept").fetchall()}
            if 2 * at not in rows:
                lost.append(f"{where}: a row of another request")
            if wrote and 2 * at + 1 not in rows:
                lost.append(f"{where}: the task's next row")
            if not thrown:
                break
    assert not lost, "lost after an interruption: " + "; ".join(lost)
    assert at > 20 * STRIDE


def _call(where: str, lost: list[str], function: Callable[..., Any], *arguments: object) -> Any:
    """Run it in a thread of its own."""
    __tracebackhide__ = True
    try:
        return Call(function, *arguments).result(within=SOON)
    except Exception as error:
        pytest.fail(f"{where}: {function.__name__}: {error!r}; lost before: {'; '.join(lost)}")


def _interrupted(begin: Begin, statement: Callable[[Session], None], at: int) -> tuple[bool, bool]:
    """One task; True if it was interrupted, and True if what it wrote next has succeeded."""
    thrown = wrote = False

    def throw() -> None:
        nonlocal thrown
        thrown = True
        raise Interrupted

    session = begin()
    try:
        with suppress(BaseException), acting(at, throw):
            statement(session)
        if not session.is_left_in_atomic():
            with suppress(Exception):
                _insert(session, 2 * at + 1)
                wrote = True
    finally:
        session.end()
    return thrown, wrote


def _write(begin: Begin, key: int) -> None:
    """The next request."""
    session = begin()
    try:
        _insert(session, key)
    finally:
        session.end()


def _insert(session: Session, key: int) -> None:
    with session.cursor() as cursor:
        cursor.execute(WRITE, [key, ""])
        assert cursor.fetchone() == (key,)


def acting(at: int, act: Callable[[], None]) -> AbstractContextManager[None]:
    """Call `act` at the `at`-th point where this thread would run a signal handler in psycopg."""
    left = at

    def see() -> None:
        nonlocal left
        frame = sys._getframe(2)  # of psycopg
        if frame.f_lasti in _points(frame.f_code):
            left -= 1
            if left == -1:
                act()

    return each_bytecode(see, PSYCOPG)


@cache
def _points(code: CodeType) -> frozenset[int]:
    """The offsets of the instructions before which Python looks for signals."""
    instructions = list(dis.get_instructions(code))
    after = {
        later.offset
        for earlier, later in pairwise(instructions)
        if (earlier.opname.startswith("CALL") or earlier.opname == "RESUME")
        # An exception counts as one of the call: of the block that has called.
        and _handler(code, earlier.offset) == _handler(code, later.offset)
    }
    loops = {each.argval for each in instructions if each.opname == "JUMP_BACKWARD"}
    return frozenset(after | loops)


def _handler(code: CodeType, offset: int) -> int | None:
    """Where an exception at this instruction continues."""
    table: Any = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    return next((each.target for each in table if each.start <= offset < each.end), None)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End the block with `Interrupted`, raised by a signal handler; for the main thread."""

    def throw(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, throw)
    timer = Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with suppress(Interrupted):
            yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def seconds_of_ends(begin: Begin, times: int) -> list[float]:
    """Interrupt so many statements of 30 s, one after the other: how long each return takes."""
    taken = []
    for _ in range(times):
        session = begin()
        with time_limit(0.1), session.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(30)")
        began = monotonic()
        session.end()
        taken.append(monotonic() - began)
    return taken
