"""What a connection is held for: requests that wait for others, threads that live on, sessions."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from time import monotonic, sleep
from typing import Any

from django.db import DEFAULT_DB_ALIAS

from benchmarks.clients import all_at_once, django_wrapper
from benchmarks.figure import Effort, Figure, column, duration, percent, whole
from benchmarks.load import counted_sessions
from benchmarks.peers import Peer
from benchmarks.worker import ROOM, Worker, workers
from tests.support.servers import Server

POOLS = ("stock-checks", "real-pool", "ours", "ours-transaction")  # peers
WITHOUT_POOL = ("none", "persistent")

THREADS = 200
ELSEWHERE = 0.3  # seconds that a request waits for somebody else's API
LIMIT = THREADS / ELSEWHERE  # requests per second, if nothing else took time
ROUNDS = 3  # at the most
SECONDS = 6.0

LONG_THREADS = 12
POOL = 8
GIVE_UP = 5.0  # seconds; DB_POOL_TIMEOUT of these threads
SETTLED = 3.0  # seconds after which what can be given back has been


@dataclass(frozen=True)
class Elsewhere:
    """sessions: the most that the server counted."""

    peer: str = column("")
    throughput: float = column("requests per second", whole)
    of_limit: float = column("of the limit", percent)
    p50: float = column("p50", duration)
    p99: float = column("p99", duration)
    sessions: int = column("sessions at most")


def elsewhere(peers: Sequence[Peer], effort: Effort) -> Figure:
    peers = [peer for peer in peers if peer.name in POOLS]
    rounds: dict[str, list[Elsewhere]] = {peer.name: [] for peer in peers}
    for number in range(min(ROUNDS, effort.slow_rounds)):
        for peer in reversed(peers) if number % 2 else peers:
            rounds[peer.name].append(_one_crowd(peer, SECONDS))
    return Figure(
        f"{THREADS} requests that wait for somebody else's API",
        f"{THREADS} threads; each request does a query, waits {duration(ELSEWHERE)}, and does"
        f" another query. If nothing else took time, there would be {LIMIT:.0f} requests per"
        " second. Pool of 20 + 10.",
        [_middle(measured) for measured in rounds.values()],
    )


def _one_crowd(peer: Peer, seconds: float) -> Elsewhere:
    with Server(ROOM) as server, workers([peer], server.url) as (worker,):
        worker.call(wait_elsewhere, 1.0)
        with counted_sessions(server) as counts:
            took = worker.call(wait_elsewhere, seconds)
    throughput = sum(len(of_one) / sum(of_one) for of_one in took)
    percentiles = statistics.quantiles(chain(*took), n=100)
    return Elsewhere(
        peer=peer.name,
        throughput=throughput,
        of_limit=throughput / LIMIT,
        p50=percentiles[49],
        p99=percentiles[98],
        sessions=max(counts),
    )


def _middle(rounds: Sequence[Elsewhere]) -> Elsewhere:
    """The median of each column."""
    throughput = statistics.median(each.throughput for each in rounds)
    return Elsewhere(
        peer=rounds[0].peer,
        throughput=throughput,
        of_limit=throughput / LIMIT,
        p50=statistics.median(each.p50 for each in rounds),
        p99=statistics.median(each.p99 for each in rounds),
        sessions=max(each.sessions for each in rounds),
    )


@dataclass(frozen=True)
class Living:
    """served: threads whose query got a connection. held: connections, when none queries."""

    peer: str = column("")
    served: int = column("threads served")
    last: float = column("the last after", duration)
    held: int = column("held at rest")


def long_threads(peers: Sequence[Peer], _: Effort) -> Figure:
    rows = []
    small = {"DB_POOL_SIZE": f"{POOL}", "DB_MAX_OVERFLOW": "0", "DB_POOL_TIMEOUT": f"{GIVE_UP:g}"}
    with Server(ROOM) as server:
        for peer in peers:
            if peer.name in POOLS:
                with Worker(peer, server.url, **small) as worker:
                    rows.append(Living(peer.name, *worker.call(live_on)))
    return Figure(
        f"{LONG_THREADS} threads that live on, and a pool of {POOL}",
        f"As those of an executor: each does one query, and then lives on without a request that"
        f" ends. The pool timeout is {duration(GIVE_UP)}; connections are counted"
        f" {duration(SETTLED)} after the last query.",
        rows,
    )


@dataclass(frozen=True)
class Inherited:
    """left: the next request finds the state; lost: the rest of the same request does not."""

    peer: str = column("")
    left: int = column("found by the next request")
    lost: int = column("lost inside the request")
    kinds: int = column("of")


def inherited(peers: Sequence[Peer], _: Effort) -> Figure:
    rows = []
    two = {"DB_POOL_SIZE": "2", "DB_MAX_OVERFLOW": "0", "DB_POOL_TIMEOUT": "10"}
    with Server(ROOM, roles=["tenant"]) as server:
        for peer in peers:
            if peer.name in (*POOLS, *WITHOUT_POOL):
                with Worker(peer, server.url, **two) as worker:
                    rows.append(Inherited(peer.name, *worker.call(count_inherited)))
    return Figure(
        "What a request leaves to the next, and loses itself",
        "Kinds of session state, such as `SET`, a role, a temporary table or an advisory lock, that"
        " a statement or psycopg's connection shows. docs/leases.md lists them, with PgBouncer.",
        rows,
    )


# In the worker


def wait_elsewhere(seconds: float) -> list[list[float]]:
    """Requests from all threads for so many seconds; by thread, the seconds that each took."""

    def work(_: object) -> list[float]:
        connection = django_wrapper()
        took: list[float] = []
        now = monotonic()
        end = now + seconds
        while now < end:
            began = now
            _query(connection)
            sleep(ELSEWHERE)
            _query(connection)
            connection.close_if_unusable_or_obsolete()  # as Django does after each request
            now = monotonic()
            took.append(now - began)
        return took

    return all_at_once(THREADS, work)[1]


def live_on() -> tuple[int, float, int]:
    """Query once in each thread: how many could, seconds until the last, connections still held."""
    from django.db import OperationalError

    barrier = threading.Barrier(LONG_THREADS)

    def work(_: int) -> float | None:
        barrier.wait()
        began = monotonic()
        try:
            _query(django_wrapper())
        except OperationalError:
            return None
        return monotonic() - began

    executor = ThreadPoolExecutor(LONG_THREADS)  # whose threads live on
    took = [seconds for seconds in executor.map(work, range(LONG_THREADS)) if seconds is not None]
    sleep(SETTLED)
    stats = django_wrapper().pool.get_stats()
    held = stats["pool_size"] - stats["pool_available"] - stats.get("pool_opening", 0)
    return len(took), max(took), held


def count_inherited() -> tuple[int, int, int]:
    """How many kinds of state the next request finds, how many the same request loses, of all."""
    from tests.support.inherited import KINDS, outcome

    kinds = [kind for kind in KINDS if not kind.hidden]
    found = []
    for kind in kinds:
        found.append(outcome(kind, DEFAULT_DB_ALIAS, _end_request))
        _start_anew()
    return sum(each.left for each in found), sum(each.lost for each in found), len(kinds)


def _end_request() -> None:
    django_wrapper().close_if_unusable_or_obsolete()


def _start_anew() -> None:
    """Leave nothing to the next kind."""
    django_wrapper().close()
    if hasattr(django_wrapper(), "close_pool"):
        django_wrapper().close_pool()


def _query(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchall()
