"""Run a function with a timeout."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def run_with_timeout(seconds: float, work: Callable[[], T]) -> T:
    """Run `work` in its own thread and return its result.

    Raises TimeoutError after `seconds`, whatever `work` waits for: a server, a network, a name
    lookup. Late work continues in its daemon thread, and its result is discarded.
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
