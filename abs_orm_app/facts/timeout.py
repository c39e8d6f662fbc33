"""Run a function with a timeout."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def run_with_timeout(seconds: float, work: Callable[[], T]) -> T:
    """Return the result of `work`, which runs in a thread of its own.

    Raises TimeoutError after so many seconds, whatever `work` waits for: a server, a network, a
    name to be resolved. Work that is late continues in its daemon thread; its result is dropped.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="abs_orm_app-timeout", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        if future.done():
            raise
        raise TimeoutError(f"no answer within {seconds:g} seconds") from error
