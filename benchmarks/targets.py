"""What we hold ourselves to, and whether these figures keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.figure import Figure, duration, hundredths, percent, times, whole
from benchmarks.peers import BY_NAME

STOCK = "stock-checks"  # the pool to compare with: Django's, with the same promise of a live one


@dataclass(frozen=True)
class Target:
    what: str
    bound: str
    measured: str
    kept: bool


def targets(figures: Mapping[str, Figure]) -> Iterator[Target]:
    """The targets of those figures that are there, by their names."""
    for name, judge in _JUDGES.items():
        if name in figures:
            yield from judge({row.peer: row for row in figures[name].rows})


Rows = Mapping[str, Any]  # by the name of the peer


def _at_most(
    what: str, value: float, bound: float, written: Callable[[float], str], than: str = ""
) -> Target:
    return Target(what, f"≤ {written(bound)}{than}", written(value), value <= bound)


def _at_least(
    what: str, value: float, bound: float, written: Callable[[float], str], than: str = ""
) -> Target:
    return Target(what, f"≥ {written(bound)}{than}", written(value), value >= bound)


def _checkout(rows: Rows) -> Iterator[Target]:
    ours = rows["ours"].median
    than = " Django's pool without checks"
    yield _at_most("checkout and return", ours, 7e-6, duration)
    yield _at_most("checkout and return", ours / rows["stock"].median, 0.9, times, than)


def _beyond_persistent(rows: Rows) -> Iterator[Target]:
    what, ours = "beyond a persistent connection", rows["ours"]
    yield _at_most(f"{what}: a request with 1 cursor", ours.one_beyond, 6e-6, duration)
    yield _at_most(f"{what}: a request with 5 cursors", ours.many_beyond, 8e-6, duration)
    yield _at_most(f"{what}: a further cursor", ours.further, 0.5e-6, duration)
    lease = rows["ours-transaction"].lease
    yield _at_most(f"{what}: a lease in transaction mode", lease, 6e-6, duration)


def _request(rows: Rows) -> Iterator[Target]:
    ratio = rows["ours"].median / rows[STOCK].median
    yield _at_most("request, local socket", ratio, 0.85, times, " Django's pool with checks")


def _distant_request(rows: Rows) -> Iterator[Target]:
    ratio = rows["ours"].median / rows["persistent"].median
    than = " persistent without checks"
    yield _at_most("request, 1 ms away", ratio, 1.1, times, than)


def _messages(rows: Rows) -> Iterator[Target]:
    yield _at_most("client messages per request", rows["ours"].per_request, 1.0, hundredths)


def _restart(rows: Rows) -> Iterator[Target]:
    yield _at_most("restart, 1 client: all served", rows["ours"].last, 0.05, duration)
    yield _at_most("restart, 1 client: errors", rows["ours"].errors, 0, whole)


def _restart_under_threads(rows: Rows) -> Iterator[Target]:
    yield _at_most("restart, 8 clients: all served", rows["ours"].last, 0.05, duration)
    yield _at_most("restart, 8 clients: errors", rows["ours"].errors, 0, whole)


def _outage(rows: Rows) -> Iterator[Target]:
    yield _at_most("outage: first success", rows["ours"].first, 0.5, duration)
    yield _at_most("outage: errors", rows["ours"].errors, 0, whole)


def _load(rows: Rows) -> Iterator[Target]:
    ours = rows["ours"]
    ratio = ours.throughput / rows["stock"].throughput
    than = " Django's pool without checks"
    yield _at_most("200 threads: sessions", ours.sessions, 30, whole)
    yield _at_least("200 threads: fairness", ours.fairness, 0.9, hundredths)
    yield _at_least("200 threads: throughput", ratio, 1.0, times, than)


def _burst(what: str, bound: float) -> Callable[[Rows], Iterator[Target]]:
    def judge(rows: Rows) -> Iterator[Target]:
        fastest = min(row.median for peer, row in rows.items() if peer != "ours")
        yield _at_most(what, rows["ours"].median / fastest, bound, times, " the fastest other")

    return judge


def _opening(rows: Rows) -> Iterator[Target]:
    ratio = rows["ours"].used / rows["none"].used
    yield _at_most("processor time to open a connection", ratio, 1.15, times, " psycopg's own")


def _crowd(connections: int) -> Callable[[Rows], Iterator[Target]]:
    def judge(rows: Rows) -> Iterator[Target]:
        what = f"1,000 waiters on {connections}"
        ours, theirs = rows["ours"], rows["stock"]
        than = " (Django's pool)"
        yield _at_most(f"{what}: last error, late", ours.late, theirs.late, duration, than)
        yield _at_most(f"{what}: of a core", ours.used, 0.02, percent)

    return judge


def _rest(rows: Rows) -> Iterator[Target]:
    yield _at_most("50 pools at rest: processor, per second", rows["ours"].used, 0.5e-3, duration)


def _switchover(rows: Rows) -> Iterator[Target]:
    what = "switchover, one address: writes that fail from 0.5 s after it"
    yield _at_most(what, rows["ours"].failed_after, 0, whole)
    yield _at_most("switchover, one address: acknowledged and lost", rows["ours"].lost, 0, whole)


def _failover(name: str) -> Callable[[Rows], Iterator[Target]]:
    def judge(rows: Rows) -> Iterator[Target]:
        ours = rows["ours"]
        yield _at_most(
            f"{name}: writes that fail", ours.failed_during + ours.failed_after, 0, whole
        )
        yield _at_most(f"{name}: acknowledged and lost", ours.lost, 0, whole)

    return judge


def _dead_host(rows: Rows) -> Iterator[Target]:
    yield _at_most("first of two hosts dead: a later connection", rows["ours"].longest, 1, duration)


def _network_is_cut(rows: Rows) -> Iterator[Target]:
    yield _at_most("network cut: queries in use fail", rows["ours"].held, 20, duration)


def _hung_server(rows: Rows) -> Iterator[Target]:
    yield _at_most("stopped server, timeout 3 s", rows["ours"].seconds, 3.3, duration)


def _hung_sessions(rows: Rows) -> Iterator[Target]:
    yield _at_most("stopped connections, timeout 3 s", rows["ours"].seconds, 3.3, duration)


def _tasks(rows: Rows) -> Iterator[Target]:
    ours, theirs = rows["ours"], rows["psycopg_pool"]
    than = " psycopg_pool's AsyncConnectionPool"
    yield _at_most("async: checkout and return", ours.checkout / theirs.checkout, 0.06, times, than)
    best = min(row.query for peer, row in rows.items() if peer != "ours")
    yield _at_most("async, 200 tasks: a query", ours.query / best, 1.0, times, " the best other")
    yield _at_least("async, 200 tasks: fairness", ours.fairness, 0.95, hundredths)
    yield _at_most("async, restart, 1 client: served", ours.restart_one, 0.15, duration)
    yield _at_most("async, restart, 8 clients: all served", ours.restart, 0.15, duration)
    yield _at_most("async, restart: errors", ours.errors, 0, whole)
    yield _at_most("async, stopped server, timeout 2 s", ours.frozen, 2.2, duration)
    yield _at_most("async, cancelled tasks: lost", ours.lost, 0, whole)
    yield _at_most("async, clients gone: queries 1 s later", ours.left, 0, whole)
    yield _at_least("async, of 20 loops: served", ours.loops, 20, whole)


def _elsewhere(rows: Rows) -> Iterator[Target]:
    what, ours = "200 requests that wait for others", rows["ours-transaction"]
    yield _at_least(f"{what}: per second", ours.throughput, 600, whole)
    yield _at_most(f"{what}: p99", ours.p99, 0.4, duration)


def _long_threads(rows: Rows) -> Iterator[Target]:
    for peer, held in (("ours", 8), ("ours-transaction", 0)):
        what = f"12 threads that live on, {BY_NAME[peer].label}"
        yield _at_least(f"{what}: served", rows[peer].served, 12, whole)
        yield _at_most(f"{what}: held at rest", rows[peer].held, held, whole)


def _inherited(rows: Rows) -> Iterator[Target]:
    for peer in ("ours", "ours-transaction"):
        what = f"kinds of session state, {BY_NAME[peer].label}"
        yield _at_most(f"{what}: found by the next request", rows[peer].left, 0, whole)
        yield _at_most(f"{what}: lost inside the request", rows[peer].lost, 0, whole)


_JUDGES: Mapping[str, Callable[[Rows], Iterator[Target]]] = {
    "checkout": _checkout,
    "beyond": _beyond_persistent,
    "request": _request,
    "distant-request": _distant_request,
    "messages": _messages,
    "tasks": _tasks,
    "restart": _restart,
    "restart-threads": _restart_under_threads,
    "outage": _outage,
    "load": _load,
    "burst": _burst("cold burst of 60 threads, queries of 20 ms", 1.0),
    "burst-5": _burst("cold burst of 60 threads, queries of 5 ms", 1.0),
    "burst-1": _burst("cold burst of 60 threads, queries of 1 ms", 1.0),
    "opening": _opening,
    "distant-burst": _burst("cold burst of 60 threads, 10 ms away", 1.0),
    "crowd": _crowd(30),
    "crowd-500": _crowd(500),
    "rest": _rest,
    "switchover": _switchover,
    "switchover-read-write": _failover("switchover, read-write"),
    "crash": _failover("crash of the primary"),
    "name-is-gone": _failover("name gone with its server"),
    "dead-host": _dead_host,
    "network-is-cut": _network_is_cut,
    "hung-server": _hung_server,
    "hung-sessions": _hung_sessions,
    "elsewhere": _elsewhere,
    "long-threads": _long_threads,
    "inherited": _inherited,
}
