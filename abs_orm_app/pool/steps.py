"""Runs a checkout, written once as a generator, in a thread or in a task.

The generator yields a `Wait` whenever it has to wait; only how it waits differs. An exception
during a wait, such as a cancellation, is raised inside the generator, which then undoes its work.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, Protocol, TypeVar

from abs_orm_app.pool import threads
from abs_orm_app.pool.clock import monotonic


class Wait(Protocol):
    """Something that a generator waits for. The result of either method is sent back to it."""

    def block(self) -> Any:
        """Wait in this thread."""

    async def task(self) -> Any:
        """Wait in this task."""


T = TypeVar("T")
Steps = Generator[Wait, Any, T]


def run(steps: Steps[T]) -> T:
    """Run the steps in this thread."""
    wait: Wait | None
    try:
        wait = next(steps)
        while True:
            wait = steps.send(wait.block())
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException as error:
        wait = None  # it may refer to the error, whose traceback refers to this frame: a cycle
        steps.throw(error)
        raise


async def run_in_task(steps: Steps[T]) -> T:
    """Run the steps in this task, without blocking its loop."""
    wait: Wait | None
    try:
        wait = next(steps)
        while True:
            wait = steps.send(await wait.task())
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException as error:
        wait = None
        steps.throw(error)
        raise


class _Select:
    """What the pool uses of `select.poll`, for eventlet, which keeps only `select.select`."""

    def __init__(self) -> None:
        self._events: dict[Any, int] = {}

    def register(self, fd: Any, events: int) -> None:
        self._events[fd] = events

    def poll(self, milliseconds: float) -> list[Any]:
        reads = [fd for fd, events in self._events.items() if events & select.POLLIN]
        writes = [fd for fd, events in self._events.items() if events & select.POLLOUT]
        readable, writable, _ = select.select(reads, writes, [], milliseconds / 1000)
        return readable + writable


Poller: Any = getattr(select, "poll", _Select)


class Readable:
    """Wait until the server has sent something (True), or until `until` (False).

    `writes`: also return True once more can be sent to it.
    """

    def __init__(self, fd: int, until: float, *, writes: bool = False) -> None:
        self._fd, self._until, self._writes = fd, until, writes

    def block(self) -> bool:
        poller = Poller()
        poller.register(self._fd, select.POLLIN | (select.POLLOUT if self._writes else 0))
        return bool(poller.poll(max(0.0, self._until - monotonic()) * 1000))

    async def task(self) -> bool:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(self._until - monotonic(), _resolve, future, False)
        loop.add_reader(self._fd, _resolve, future, True)
        if self._writes:
            loop.add_writer(self._fd, _resolve, future, True)
        try:
            return await future
        finally:
            timer.cancel()
            loop.remove_reader(self._fd)
            if self._writes:
                loop.remove_writer(self._fd)


def _resolve(future: asyncio.Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)


class Blocking:
    """A function that blocks. For a task, it is called in a thread.

    It uses the connection, so a cancelled task waits until it returns: it must have a time limit.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def block(self) -> Any:
        return self._function()

    async def task(self) -> Any:
        done: Future[Any] = Future()
        threads.start("abs_orm_app-call", copy_context().run, self._call, done)
        waiting = asyncio.wrap_future(done)
        cancelled: asyncio.CancelledError | None = None
        try:
            while not done.done():
                try:
                    await asyncio.wait([waiting])
                except asyncio.CancelledError as error:
                    cancelled = error
        except GeneratorExit:  # the task is destroyed, so block until the function returns
            done.exception()
            raise
        if cancelled is not None:
            raise cancelled
        return done.result()

    def _call(self, done: Future[Any]) -> None:
        try:
            done.set_result(self._function())
        except BaseException as error:
            done.set_exception(error)
