"""The pool alone, beside psycopg_pool's: a crowd that waits in vain, and pools that nobody uses."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import monotonic, process_time, sleep
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from abs_orm_app.pool.pool import HardenedPool
from benchmarks.figure import Effort, Figure, column, duration, percent
from benchmarks.peers import Peer
from tests.support.servers import Server

WAITERS = 1000
TIMEOUT = 8.0  # seconds
SETTLED = 1.5  # seconds after which the waiting threads have all begun to wait
POOLS = 50
OPENED = 20
REST = 5.0  # seconds
ROUNDS = 3  # at the most; a round takes half a minute
FILLED = 60.0  # seconds that a pool may take to open its connections

Make = Callable[..., Any]


@dataclass(frozen=True)
class Crowd:
    peer: str = column("")
    late: float = column("last error, after the deadline", duration)
    used: float = column("of a core while all wait", percent)


@dataclass(frozen=True)
class Rest:
    peer: str = column("")
    used: float = column("processor time per second", duration)


def crowd(limit: int, _: Sequence[Peer], effort: Effort) -> Figure:
    """WAITERS threads that wait for a pool of `limit` connections, which are all in use."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in _MAKERS}
    with _server() as conninfo:
        for _round in range(min(ROUNDS, effort.few_rounds)):
            for name, make in _MAKERS.items():
                measured[name].append(_wait_in_vain(make, conninfo, limit))
    return Figure(
        f"{WAITERS} threads wait for {limit} connections in vain",
        f"All connections are in use until after the timeout of {duration(TIMEOUT)}; leaks are"
        " traced in our pool. The thread that learns last, and the processor time of the process.",
        [
            Crowd(name, median(late for late, _ in runs), median(used for _, used in runs))
            for name, runs in measured.items()
        ],
    )


def rest(_: Sequence[Peer], __: Effort) -> Figure:
    with _server() as conninfo:
        rows = [Rest(name, _rest(make, conninfo)) for name, make in _MAKERS.items()]
    return Figure(
        f"{POOLS} pools at rest",
        f"Each has one connection, which nobody uses for {duration(REST)}.",
        rows,
    )


@dataclass(frozen=True)
class Opening:
    peer: str = column("")
    used: float = column("processor time", duration)


def opening(_: Sequence[Peer], effort: Effort) -> Figure:
    """The processor time of this process, which a busy machine changes little."""
    used: dict[str, list[float]] = {name: [] for name in ("none", *_MAKERS)}
    with _server() as conninfo:
        for _round in range(effort.rounds):
            began = process_time()
            connections = [psycopg.connect(conninfo) for _ in range(OPENED)]
            used["none"].append(process_time() - began)
            for connection in connections:
                connection.close()
            for name, make in _MAKERS.items():
                began = process_time()
                with make(conninfo, min_size=OPENED) as pool:
                    pool.wait(FILLED)
                    used[name].append(process_time() - began)
    return Figure(
        "Opening a connection",
        f"In this process, per connection; {OPENED} at a time, local socket.",
        [Opening(name, median(runs) / OPENED) for name, runs in used.items()],
    )


def _ours(conninfo: str, **options: Any) -> Any:
    return HardenedPool(conninfo, open=True, **options)


def _theirs(conninfo: str, **options: Any) -> Any:
    options.pop("leak_seconds", None)
    return ConnectionPool(conninfo, open=True, **options)


_MAKERS: Mapping[str, Make] = {"stock": _theirs, "ours": _ours}


@contextmanager
def _server() -> Iterator[str]:
    logger = logging.getLogger("psycopg.pool")
    logger.disabled = True  # it logs each checkout
    try:
        with Server({"max_connections": "550"}) as server:
            yield server.conninfo
    finally:
        logger.disabled = False


def _wait_in_vain(make: Make, conninfo: str, limit: int) -> tuple[float, float]:
    """Seconds from the deadline to the last error; share of a core used while all wait."""
    options = {"min_size": limit, "timeout": TIMEOUT, "num_workers": 8, "leak_seconds": 600.0}
    began: list[float] = []
    late: list[float] = []

    def wait(pool: Any) -> None:
        came = monotonic()
        began.append(came)
        try:
            pool.getconn()
        except PoolTimeout:
            late.append(monotonic() - came - TIMEOUT)

    with make(conninfo, **options) as pool:
        pool.wait(FILLED)
        held = [pool.getconn() for _ in range(limit)]
        start = partial(threading.Thread, target=wait, args=(pool,), daemon=True)
        threads = [start() for _ in range(WAITERS)]
        for thread in threads:
            thread.start()
        while len(began) < WAITERS:
            sleep(0.01)
        sleep(SETTLED)
        used = _processor_share(TIMEOUT / 2)
        for thread in threads:
            thread.join()
        for conn in held:
            pool.putconn(conn)
    return max(late), used


def _rest(make: Make, conninfo: str) -> float:
    """Seconds of processor time a second."""
    pools = [make(conninfo, min_size=1) for _ in range(POOLS)]
    for pool in pools:
        pool.wait(FILLED)
    sleep(1)
    used = _processor_share(REST)
    for pool in pools:
        pool.close()
    return used


def _processor_share(seconds: float) -> float:
    """Processor time of this process in the next `seconds`, as a share of a core."""
    before, since = process_time(), monotonic()
    sleep(seconds)
    return (process_time() - before) / (monotonic() - since)
