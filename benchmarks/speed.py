"""What a checkout and a request cost when nothing is wrong and nobody waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from time import perf_counter
from typing import Any

from benchmarks.clients import Client, django_wrapper, pool_client
from benchmarks.distance import distant, measure_round_trip, through
from benchmarks.figure import (
    Effort,
    Figure,
    Timing,
    column,
    duration,
    hundredths,
    interleaved,
    timings,
)
from benchmarks.peers import Peer
from benchmarks.worker import ROOM, workers
from tests.support.proxy import Proxy
from tests.support.servers import Server

WARM_UP = 20
BATCH = 10  # operations between two looks at the clock
COUNTED = 100  # requests whose messages are counted
ROUND_TRIP = 0.001  # seconds that the proxy adds


def checkouts(peers: Sequence[Peer], effort: Effort) -> Figure:
    with Server(ROOM) as server:
        rows = _measure(time_checkouts, [p for p in peers if p.pooled], server.url, effort)
    return Figure(
        "One checkout and return: the pool alone",
        "`getconn` and `putconn` (`connect` and `close` of a QueuePool); one thread, warm, local"
        " socket.",
        rows,
    )


def django_checkouts(peers: Sequence[Peer], effort: Effort) -> Figure:
    with Server(ROOM) as server:
        rows = _measure(time_uses, [p for p in peers if p.engine], server.url, effort)
    return Figure(
        "One checkout and return: in Django",
        "`ensure_connection()`, and what Django does when a request ends; one thread, warm, local"
        " socket.",
        rows,
    )


def requests(peers: Sequence[Peer], effort: Effort) -> Figure:
    with Server(ROOM) as server:
        rows = _measure(time_requests, [p for p in peers if p.engine], server.url, effort)
    return Figure(
        "One request, local socket",
        "A request of the sample project through Django's WSGI handler: its middleware, one query,"
        " and the end of the request.",
        rows,
    )


def distant_requests(peers: Sequence[Peer], effort: Effort) -> Figure:
    with Server(ROOM) as server, distant(server, ROUND_TRIP) as port:
        round_trip = measure_round_trip(server, port)
        url = through(port, server)
        rows = _measure(time_requests, [p for p in peers if p.engine], url, effort)
    return Figure(
        "One request, 1 ms away",
        f"The same, through a proxy that adds {duration(ROUND_TRIP)} to a round trip: with what the"
        f" server, the proxy and the client take, a `SELECT 1` takes {duration(round_trip)}.",
        rows,
    )


def _measure(
    turn: Callable[[float], float], peers: Sequence[Peer], url: str, effort: Effort
) -> list[Timing]:
    with workers(peers, url) as all_of_them:
        return timings(
            interleaved(
                all_of_them, effort.rounds, lambda worker: worker.call(turn, effort.seconds)
            )
        )


@dataclass(frozen=True)
class Messages:
    peer: str = column("")
    per_request: float = column("messages", hundredths)


def messages(peers: Sequence[Peer], _effort: Effort) -> Figure:
    rows = []
    with (
        Server(ROOM) as server,
        Proxy(server.port) as proxy,
        workers([p for p in peers if p.engine], through(proxy.port, server)) as projects,
    ):
        for worker in projects:
            worker.call(send_requests, WARM_UP)
            before = proxy.client_messages
            worker.call(send_requests, COUNTED)
            sent = proxy.client_messages - before
            rows.append(Messages(worker.peer.name, sent / COUNTED))
    return Figure(
        "Client messages per request",
        f"How often the client sends something to the server in a request with one query; counted"
        f" by a proxy, over {COUNTED} requests.",
        rows,
    )


# In the worker


def time_checkouts(seconds: float) -> float:
    return _mean(partial(_use, pool_client()), seconds)


def time_uses(seconds: float) -> float:
    wrapper = django_wrapper()

    def use() -> None:
        wrapper.close_if_health_check_failed()  # as `cursor()` does
        wrapper.ensure_connection()
        wrapper.close_if_unusable_or_obsolete()

    return _mean(use, seconds)


def _use(client: Client) -> None:
    client.give(client.take())


def time_requests(seconds: float) -> float:
    return _mean(_requester(), seconds)


def send_requests(count: int) -> None:
    _time(_requester(), count)


def _mean(operation: Callable[[], object], seconds: float) -> float:
    """Mean seconds of the operation, done for so many seconds after a warm-up."""
    _time(operation, WARM_UP)
    spent, count = 0.0, 0
    while spent < seconds:
        spent += _time(operation, BATCH)
        count += BATCH
    return spent / count


def _time(operation: Callable[[], object], count: int) -> float:
    began = perf_counter()
    for _ in range(count):
        operation()
    return perf_counter() - began


@cache
def _requester() -> Callable[[], None]:
    """What does one request, as a WSGI server does it."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import RequestFactory

    handler: Any = WSGIHandler()
    environ = RequestFactory(SERVER_NAME="localhost").get("/").environ

    def request() -> None:
        response = handler(environ.copy(), lambda *_: None)
        assert b"pid" in b"".join(response)
        response.close()

    return request
