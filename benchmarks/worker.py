"""One process per peer: none can disturb, or hang, another; each is killed at the end.

    with Worker(peer, server.url) as worker:
        seconds = worker.call(time_checkouts, 0.2)

What is called there is an ordinary function of these modules; its arguments and its result are
pickled.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, Self, TypeVar

from benchmarks.clients import fill
from benchmarks.peers import Peer

P = ParamSpec("P")
T = TypeVar("T")

ROOM = {"max_connections": "500"}  # settings of a server for all peers
PATIENCE = 150.0  # seconds; no measurement takes so long


class WorkerError(Exception):
    """What a function raised in the other process: its traceback, and `reason` in one line."""

    def __init__(self, reason: str, trace: str) -> None:
        super().__init__(trace)
        self.reason = reason


class Worker:
    """A process that is set up as the peer, and calls functions for this one.

    variables: further environment variables, as DB_POOL_TIMEOUT.
    """

    def __init__(self, peer: Peer, url: str, **variables: str) -> None:
        self.peer = peer
        environ = {
            "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
            "BENCH_PEER": peer.name,
            "DATABASE_URL": url,
            **peer.environ,
            **variables,
        }
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, environ), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.start(function, *args, **kwargs)
        answer: T = self.result()
        return answer

    def start(self, function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        self._pipe.send((function, args, kwargs))

    def result(self, within: float = PATIENCE) -> Any:
        """What the started function returned; TimeoutError if it has not after so many seconds."""
        if not self._pipe.poll(within):
            raise TimeoutError(f"{self.peer.name}: no result within {within:.0f} s")
        value, error = self._pipe.recv()
        if error is not None:
            raise WorkerError(*error)
        return value


@contextmanager
def workers(peers: Iterable[Peer], url: str, **variables: str) -> Iterator[list[Worker]]:
    """A worker for each peer, all set up, with full pools."""
    with ExitStack() as stack:
        started = [stack.enter_context(Worker(peer, url, **variables)) for peer in peers]
        for worker in started:
            worker.start(fill)
        for worker in started:
            worker.result()
        yield started


def _serve(pipe: Connection, environ: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith(("DB_", "DATABASE_URL"))]:
        del os.environ[name]
    os.environ |= environ
    logging.disable()
    failed = _attempt(_set_up)[1]
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except EOFError:
            return
        pipe.send((None, failed) if failed else _attempt(function, *args, **kwargs))


def _set_up() -> None:
    import django

    django.setup()


def _attempt(
    function: Callable[..., T], *args: Any, **kwargs: Any
) -> tuple[T | None, tuple[str, str] | None]:
    """What the function returned; or what it raised, for a `WorkerError`."""
    try:
        return function(*args, **kwargs), None
    except Exception as error:
        reason = traceback.format_exception_only(error)[0].splitlines()[0]
        return None, (reason, traceback.format_exc())
