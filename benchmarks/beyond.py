"""What a request costs beyond the same request on a persistent connection, in one process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter, thread_time
from typing import Any

from benchmarks.figure import Effort, Figure, column, duration
from benchmarks.peers import BY_NAME, DJANGO, OURS, Peer
from benchmarks.worker import ROOM, Worker
from tests.support.servers import Server

BARE = "persistent"
MANY = 5  # cursors, or queries
TURNS = 30  # turns of each peer for a round of the effort
TURN = 25  # requests in a turn: so few that most turns are not interrupted
WARM_UP = 300  # requests

# By the name of the peer, its entry of DATABASES: the changes to that of our engine.
ENTRIES: Mapping[str, Mapping[str, Any]] = {
    BARE: {"ENGINE": DJANGO, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False, "OPTIONS": {}},
    "stock": {"ENGINE": DJANGO, "CONN_HEALTH_CHECKS": False},
    "ours": {"ENGINE": OURS, "ABS_ORM_APP": {"release": "request"}},
    "ours-transaction": {"ENGINE": OURS, "ABS_ORM_APP": {"release": "transaction"}},
}


@dataclass(frozen=True)
class Cost:
    peer: str = column("")
    one: float = column("1 cursor", duration)
    one_beyond: float = column("beyond persistent", duration)
    many: float = column(f"{MANY} cursors", duration)
    many_beyond: float = column("beyond persistent", duration)
    further: float = column("a further cursor, beyond persistent", duration)
    query: float = column("1 query, wall time", duration)
    queries: float = column(f"{MANY} queries, wall time", duration)

    @property
    def lease(self) -> float:
        """Seconds beyond, where each cursor takes a lease of its own."""
        return self.many_beyond / MANY


def beyond_persistent(_: Sequence[Peer], effort: Effort) -> Figure:
    with Server(ROOM) as server, Worker(BY_NAME["ours"], server.url) as worker:
        rows = worker.call(measure, effort.rounds)
    return Figure(
        "What a request costs beyond a persistent connection",
        f"A request that opens and closes 1 or {MANY} cursors, and ends; all in one process, in"
        f" turns of {TURN} requests. No query, so no scheduler in the figure: the processor time"
        " of the best turn. Beside it the median wall time of a request that queries (`SELECT 1`,"
        " local socket); on few processors the scheduler decides that.",
        rows,
    )


# In the worker


def measure(rounds: int) -> list[Cost]:
    from django.db import connections

    bare = connections.databases["default"]
    for name, changes in ENTRIES.items():
        connections.databases[name] = {**bare, **changes}
    connections.configure_settings(connections.databases)
    cursors = {
        (name, count): _request(connections[name], _open, count)
        for name in ENTRIES
        for count in (1, MANY)
    }
    queries = {
        (name, count): _request(connections[name], _query, count)
        for name in ENTRIES
        for count in (1, MANY)
    }
    with _without_garbage_collection():
        best = {key: min(turns) for key, turns in _turns(cursors, rounds, thread_time).items()}
        wall = {key: median(turns) for key, turns in _turns(queries, rounds, perf_counter).items()}
    return [_row(name, best, wall) for name in ENTRIES]


Costs = Mapping[tuple[str, int], float]


def _row(name: str, best: Costs, wall: Costs) -> Cost:
    one, many = (best[name, count] - best[BARE, count] for count in (1, MANY))
    return Cost(
        name,
        best[name, 1],
        one,
        best[name, MANY],
        many,
        (many - one) / (MANY - 1),
        wall[name, 1],
        wall[name, MANY],
    )


def _turns(
    requests: Mapping[tuple[str, int], Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> dict[tuple[str, int], list[float]]:
    """Seconds a request, for each turn of each."""
    for request in requests.values():
        for _ in range(WARM_UP):
            request()
    measured: dict[tuple[str, int], list[float]] = {key: [] for key in requests}
    for _ in range(rounds * TURNS):
        for key, request in requests.items():
            began = clock()
            for _ in range(TURN):
                request()
            measured[key].append((clock() - began) / TURN)
        gc.collect(0)
    return measured


@contextmanager
def _without_garbage_collection() -> Any:
    """Or it falls on one peer or another."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _request(wrapper: Any, step: Callable[[Any], None], count: int) -> Callable[[], None]:
    """As Django does it: `close_old_connections` at the begin of a request, and at its end."""

    def request() -> None:
        wrapper.close_if_unusable_or_obsolete()
        for _ in range(count):
            step(wrapper)
        wrapper.close_if_unusable_or_obsolete()

    return request


def _open(wrapper: Any) -> None:
    wrapper.cursor().close()


def _query(wrapper: Any) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()
