"""A server that was restarted, that was away, that does not answer."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from time import monotonic, sleep

from benchmarks.clients import Client, all_at_once, fill, query
from benchmarks.figure import Effort, Figure, column, duration
from benchmarks.peers import Peer
from benchmarks.worker import ROOM, Worker, workers
from tests.support.servers import Server

CLIENTS = 8
PAUSE = 0.1  # seconds between two queries of a client
APART = 1.0  # seconds between the outages of two peers
TIMEOUT = 3.0  # seconds, DB_POOL_TIMEOUT where the server hangs
NEVER = 10.0  # seconds after which a hung client is given up
IDLE = 1.0  # seconds between the last use of the connections and the server's stop


@dataclass(frozen=True)
class Served:
    """How a client fared: when it had its success, and when it began what failed (`monotonic`)."""

    at: float  # inf: never
    failures: Sequence[float]


@dataclass(frozen=True)
class Recovery:
    """Seconds until the first and until the last client had its query done; what failed before."""

    peer: str = column("")
    first: float = column("first success", duration)
    last: float = column("all served", duration)
    errors: int = column("errors")


def restart(peers: Sequence[Peer], effort: Effort) -> Figure:
    return _recoveries(1, peers, effort)


def restart_under_threads(peers: Sequence[Peer], effort: Effort) -> Figure:
    return _recoveries(CLIENTS, peers, effort)


def _recoveries(threads: int, peers: Sequence[Peer], effort: Effort) -> Figure:
    return Figure(
        f"A restart of the server, {threads} client{'s' if threads > 1 else ''}",
        "The connections are idle, the server is restarted, then each client does a query, again"
        f" {duration(PAUSE)} after one that failed, until it succeeds (never: not in"
        f" {effort.patience:.0f} s). Medians of {effort.few_rounds} restarts, one where it takes"
        " more than a second; the most errors.",
        [_middle(_restarts(peer, threads, effort)) for peer in peers],
    )


def _restarts(peer: Peer, threads: int, effort: Effort) -> list[Recovery]:
    rounds: list[Recovery] = []
    with Server(ROOM) as server, workers([peer], server.url) as (worker,):
        while len(rounds) < effort.few_rounds and all(each.last < 1 for each in rounds):
            worker.call(fill)
            worker.call(persevere, threads)
            server.restart()
            began, served = worker.call(persevere, threads, give_up=effort.patience)
            rounds.append(_recovery(peer, served, back=began, away=began))
    return rounds


def _recovery(peer: Peer, served: Sequence[Served], *, back: float, away: float) -> Recovery:
    """Count the time from when the server was back, and errors from when it was away."""
    return Recovery(
        peer.name,
        first=max(0.0, min(each.at for each in served) - back),
        last=max(0.0, max(each.at for each in served) - back),
        errors=sum(began >= away for each in served for began in each.failures),
    )


def _middle(rounds: Sequence[Recovery]) -> Recovery:
    return Recovery(
        rounds[0].peer,
        statistics.median(each.first for each in rounds),
        statistics.median(each.last for each in rounds),
        max(each.errors for each in rounds),
    )


def outage(peers: Sequence[Peer], effort: Effort) -> Figure:
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(ROOM)) for _ in peers]
        ready = [
            stack.enter_context(workers([peer], server.url))[0]
            for peer, server in zip(peers, servers, strict=True)
        ]
        threads = stack.enter_context(ThreadPoolExecutor(len(ready)))
        waiting = []
        for server, worker in zip(servers, ready, strict=True):
            waiting.append(threads.submit(_one_outage, server, worker, effort))
            sleep(APART)
        rows = [each.result() for each in waiting]
    return Figure(
        f"An outage of {effort.outage:.0f} s, {CLIENTS} clients",
        f"Each client does a query every {duration(PAUSE)} while the server is stopped and, so much"
        " later, started. Times count from the moment that it is ready again; errors, from the"
        " moment that it has stopped: no pool can save the queries that the stop interrupts. Each"
        f" peer has a server of its own, and its outage {duration(APART)} after the one before.",
        rows,
    )


def _one_outage(server: Server, worker: Worker, effort: Effort) -> Recovery:
    # Whoever succeeds when half of the outage is over succeeds after it.
    worker.start(persevere, CLIENTS, not_before=effort.outage / 2, give_up=effort.patience)
    sleep(5 * PAUSE)
    server.stop()
    away = monotonic()
    sleep(effort.outage)
    server.start()
    back = monotonic()
    _, served = worker.result()
    return _recovery(worker.peer, served, back=back, away=away)


@dataclass(frozen=True)
class Hang:
    """What a client gets, after how many seconds."""

    peer: str = column("")
    seconds: float = column("after", duration)
    outcome: str = column("the client gets")


def hung_server(peers: Sequence[Peer], _effort: Effort) -> Figure:
    with Server(ROOM) as server, _idle(peers, server) as idle:
        server.suspend()
        rows = _watch(idle)
        server.resume()
    return Figure(
        f"A server that has stopped, timeout {TIMEOUT:.0f} s",
        "The connections are idle, all processes of the server are stopped (SIGSTOP), then a client"
        f" does a query (never: not in {NEVER:.0f} s). All peers at the same time.",
        rows,
    )


def hung_sessions(peers: Sequence[Peer], _effort: Effort) -> Figure:
    with Server(ROOM) as server, _idle(peers, server) as idle:
        with server.admin() as admin:
            pids = admin.execute(
                "SELECT pid FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchall()
        for (pid,) in pids:
            server.suspend_backend(pid)
        rows = _watch(idle)
        server.resume()
    return Figure(
        f"Connections that have stopped, timeout {TIMEOUT:.0f} s",
        "The same, but only the server's processes for the open connections are stopped: a new"
        " connection would work.",
        rows,
    )


@contextmanager
def _idle(peers: Sequence[Peer], server: Server) -> Iterator[list[Worker]]:
    with workers(peers, server.url, DB_POOL_TIMEOUT=str(TIMEOUT)) as idle:
        for worker in idle:
            worker.call(query_once)
        sleep(IDLE)
        yield idle


def _watch(idle: Sequence[Worker]) -> list[Hang]:
    for worker in idle:
        worker.start(query_once)
    end = monotonic() + NEVER
    rows = []
    for worker in idle:
        try:
            seconds, outcome = worker.result(max(0.0, end - monotonic()))
        except TimeoutError:
            seconds, outcome = inf, "nothing"
        rows.append(Hang(worker.peer.name, seconds, outcome))
    return rows


# In the worker


def persevere(
    threads: int, *, not_before: float = 0.0, give_up: float = 30.0
) -> tuple[float, list[Served]]:
    """Query from each thread until it succeeds, after `not_before` seconds or later.

    Returns when that began (`monotonic`), and how each thread fared.
    """

    def work(client: Client) -> Served:
        failures: list[float] = []
        began = now = monotonic()
        while now - began < give_up:
            try:
                query(client, "SELECT 1")
            except Exception:  # whatever a peer raises
                failures.append(now)
            else:
                if monotonic() - began >= not_before:
                    return Served(monotonic(), failures)
            sleep(PAUSE)
            now = monotonic()
        return Served(inf, failures)

    return all_at_once(threads, work)


def query_once() -> tuple[float, str]:
    """Query from a thread; the seconds that it took, and what came of it."""

    def work(client: Client) -> str:
        try:
            query(client, "SELECT 1")
        except Exception as error:  # whatever a peer raises
            return type(error).__name__
        return "a working connection"

    began, outcomes = all_at_once(1, work)
    return monotonic() - began, outcomes[0]
