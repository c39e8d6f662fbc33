"""Many threads: throughput, fairness and limits, and a burst on a pool that was just opened."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from time import monotonic, sleep

from benchmarks.clients import Client, all_at_once, empty, query
from benchmarks.distance import distant, through
from benchmarks.figure import (
    Effort,
    Figure,
    Timing,
    column,
    duration,
    hundredths,
    interleaved,
    times,
    timings,
    whole,
)
from benchmarks.peers import Peer
from benchmarks.worker import ROOM, workers
from tests.support.servers import Server

THREADS = 200
QUERY = 0.005  # seconds
BURST = 60  # threads
DISTANT_QUERY = 0.02  # seconds
ROUND_TRIP = 0.01  # seconds, as to another region
SAMPLE_INTERVAL = 0.25  # seconds between counts of sessions


@dataclass(frozen=True)
class Load:
    """fairness: queries of the slowest thread, relative to the mean of all threads.
    sessions: the most that the server counted.
    """

    peer: str = column("")
    throughput: float = column("queries per second", whole)
    ratio: float = column("to ours", times)
    p99: float = column("p99", duration)
    fairness: float = column("fairness", hundredths)
    sessions: int = column("sessions at most")


def load(peers: Sequence[Peer], effort: Effort) -> Figure:
    rounds: dict[str, list[Load]] = {peer.name: [] for peer in peers}
    for number in range(effort.slow_rounds):
        # There and back, so that none has always the same one before it.
        for peer in reversed(peers) if number % 2 else peers:
            rounds[peer.name].append(_one_load(peer, effort.load_seconds))
    rows = [_middle(measured) for measured in rounds.values()]
    ours = next(row.throughput for row in rows if row.peer == "ours")
    return Figure(
        f"{THREADS} threads",
        f"Each does a query of {duration(QUERY)}, again and again for"
        f" {duration(effort.load_seconds)}, in a connection that it takes and gives back each time."
        " Fairness: queries of the slowest thread, relative to the mean. The server counts the"
        " sessions.",
        [replace(row, ratio=row.throughput / ours) for row in rows],
    )


def _one_load(peer: Peer, seconds: float) -> Load:
    with Server(ROOM) as server, workers([peer], server.url) as (worker,):
        worker.call(keep_busy, 0.5)
        with counted_sessions(server) as counts:
            took = worker.call(keep_busy, seconds)
    done = [len(of_one) - 1 for of_one in took]
    return Load(
        peer=peer.name,
        throughput=sum(done) / seconds,
        ratio=1.0,
        p99=statistics.quantiles(chain(*took), n=100)[-1],
        fairness=min(done) / statistics.mean(done),
        sessions=max(counts),
    )


def _middle(rounds: Sequence[Load]) -> Load:
    return Load(
        peer=rounds[0].peer,
        throughput=statistics.median(each.throughput for each in rounds),
        ratio=1.0,
        p99=statistics.median(each.p99 for each in rounds),
        fairness=statistics.median(each.fairness for each in rounds),
        sessions=max(each.sessions for each in rounds),
    )


@contextmanager
def counted_sessions(server: Server) -> Iterator[list[int]]:
    counts: list[int] = []
    over = threading.Event()

    def count() -> None:
        while not over.wait(SAMPLE_INTERVAL):
            counts.append(server.sessions())

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield counts
    finally:
        over.set()
        thread.join()


def burst(seconds: float, peers: Sequence[Peer], effort: Effort) -> Figure:
    """`seconds`: of each query."""
    with Server(ROOM) as server:
        rows = _bursts(peers, server.url, effort, seconds)
    return Figure(
        f"{BURST} threads with a query of {duration(seconds)} at a pool that was just opened",
        f"From the moment that {BURST} threads each want to do a query of {duration(seconds)}"
        " until the last has done it; local socket. What takes the time is the server's starting"
        " of a process for each connection, on as many CPUs as there are.",
        rows,
    )


def distant_burst(peers: Sequence[Peer], effort: Effort) -> Figure:
    with Server(ROOM) as server, distant(server, ROUND_TRIP) as port:
        rows = _bursts(peers, through(port, server), effort, DISTANT_QUERY)
    return Figure(
        f"{BURST} threads at a pool that was just opened, {duration(ROUND_TRIP)} away",
        f"The same, through a proxy that adds {duration(ROUND_TRIP)} to a round trip. What takes"
        " the time is how many connections are opened at once.",
        rows,
    )


def _bursts(peers: Sequence[Peer], url: str, effort: Effort, seconds: float) -> list[Timing]:
    # Persistent connections begin as none.
    starting = [peer for peer in peers if peer.pooled or peer.name == "none"]
    with workers(starting, url) as cold:
        return timings(
            interleaved(cold, effort.few_rounds, lambda each: each.call(serve_a_burst, seconds))
        )


# In the worker


def keep_busy(seconds: float) -> list[list[float]]:
    """Query from all threads for so many seconds; by thread, the seconds that each query took.

    The last query of each thread ends later than that.
    """

    def work(client: Client) -> list[float]:
        took: list[float] = []
        now = monotonic()
        end = now + seconds
        while now < end:
            began = now
            query(client, f"SELECT pg_sleep({QUERY})")
            now = monotonic()
            took.append(now - began)
        return took

    return all_at_once(THREADS, work)[1]


def serve_a_burst(seconds: float) -> float:
    empty()

    def work(client: Client) -> float:
        query(client, f"SELECT pg_sleep({seconds})")
        return monotonic()

    began, ends = all_at_once(BURST, work)
    sleep(0.2)  # the pool may go on opening connections
    return max(ends) - began
