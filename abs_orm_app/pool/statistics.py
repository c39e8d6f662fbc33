"""What a pool counts and times, with psycopg_pool's keys and a few more.

No lock guards the counters: each count is a `+=` on a plain attribute. With the GIL no other thread
can run between the read and the write (Python switches threads and handles signals at calls and at
backward jumps), so no count is lost; without the GIL one may be lost now and then.

A number is a field of `Counters` or `facts.snapshot.Snapshot`. Its `Metric` has its names for
`get_stats`, the exporters and the page. All code that shows numbers uses `metrics_of`, so a new
number needs only a field, and a line in the pool that counts it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from itertools import accumulate
from math import inf
from operator import sub
from typing import Any, Literal

# Seconds, from one quick query to the default timeout.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10, 30)
LEAST_PART = 1e-6  # the least part of a bucket: a bound itself is in the bucket below it

Kind = Literal["gauge", "counter", "reasons", "histogram"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The names of a number. Published names do not change."""

    kind: Kind
    name: str  # for Prometheus, which adds _total to a counter
    text: str
    otel: tuple[str, ...] = ()  # its OpenTelemetry instruments; most numbers share one
    unit: str = "{connection}"
    key: str = ""  # of a counter, in `get_stats`
    label: str = ""  # of a counter, on the page


def number(kind: Kind, name: str, text: str, **more: Any) -> Any:
    """Return a dataclass field for a number."""
    metric = Metric(kind=kind, name=f"django_db_pool_{name}", text=text, **more)
    return field(metadata={"metric": metric})


def counter(name: str, text: str, label: str, key: str = "", **more: Any) -> Any:
    """Return a dataclass field for a counter; `key` defaults to `name`."""
    metric = Metric(
        kind="counter",
        name=f"django_db_pool_{name}",
        text=text,
        label=label,
        key=key or name,
        **more,
    )
    return field(default=0, metadata={"metric": metric})


def metrics_of(kind: Kind, numbers: type[Any]) -> dict[str, Metric]:
    """The metrics of one kind among the fields of a dataclass, by the name of the field."""
    found = {each.name: each.metadata.get("metric") for each in fields(numbers)}
    return {name: metric for name, metric in found.items() if metric and metric.kind == kind}


@dataclass(slots=True)
class Counters:
    """What has happened to a pool since it was made."""

    checkouts: int = counter("checkouts", "Connections asked for.", "checkouts", "requests_num")
    queued: int = counter(
        "checkouts_queued",
        "Checkouts that found no idle connection.",
        "of these waited",
        "requests_queued",
    )
    timeouts: int = counter(
        "timeouts",
        "Checkouts that got no connection in time.",
        "timed out",
        "requests_timeouts",
        otel=("db.client.connection.timeouts",),
        unit="{timeout}",
    )
    errors: int = counter(
        "errors",
        "Checkouts that got no connection, for any reason.",
        "failed, with those",
        "requests_errors",
    )
    connects: int = counter(
        "connects", "Attempts to open a connection.", "connects", "connections_num"
    )
    connect_errors: int = counter(
        "connect_errors",
        "Attempts to open one that failed.",
        "of these failed",
        "connections_errors",
    )
    stale: int = counter(
        "connections_stale", "Connections found closed or hung.", "connections stale"
    )
    leaked: int = counter(
        "connections_leaked", "Connections that were never returned.", "connections leaked"
    )
    expired: int = counter(
        "connections_expired", "Connections closed because of their age.", "connections expired"
    )
    misplaced: int = counter(
        "connections_misplaced",
        "Connections closed because of their server's role.",
        "on the wrong server",
    )
    cleaned: int = counter(
        "connections_cleaned",
        "Connections cleaned because their session was changed.",
        "sessions cleaned",
    )
    returned_broken: int = counter(
        "connections_broken", "Connections returned broken.", "returned broken", "returns_bad"
    )


@dataclass(frozen=True)
class Distribution:
    """A snapshot of a histogram. `counts` has one item more than `BOUNDS`."""

    counts: tuple[int, ...]
    total: float  # seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound in seconds, and how many durations were not longer; infinity last."""
        return zip((*BOUNDS, float("inf")), accumulate(self.counts), strict=True)

    def since(self, before: Distribution) -> Distribution:
        """What was added after `before`, an earlier state of the same histogram."""
        counts = tuple(map(sub, self.counts, before.counts))
        return Distribution(counts, self.total - before.total)

    def durations(self) -> list[tuple[float, int]]:
        """Durations in seconds, with their counts: the same buckets, and the same sum.

        For exporters that only accept single durations. All durations of one bucket are equal.
        """
        *finite, longest = zip(self.counts, (0.0, *BOUNDS), (*BOUNDS, inf), strict=True)
        lowest = sum(n * low for n, low, _ in (*finite, longest))
        room = sum(n * (high - low) for n, low, high in finite)
        part = 0.0 if self.counts[-1] or not room else (self.total - lowest) / room
        part = min(max(part, LEAST_PART), 1.0)
        found = [(min(low + part * (high - low), high), n) for n, low, high in finite if n > 0]
        if (n := self.counts[-1]) > 0:
            rest = self.total - sum(seconds * count for seconds, count in found)
            found.append((max(rest / n, BOUNDS[-1] * (1 + LEAST_PART)), n))
        return found


class Histogram:
    """Counts durations, without a lock (see the docstring of this module).

    `record`: called with each duration, in the thread that uses the pool. It must be quick, and
    neither wait nor raise, like the `append` of a bounded `deque`. None by default.
    """

    __slots__ = ("counts", "record", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self.record: Callable[[float], object] | None = None

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds
        if self.record is not None:
            self.record(seconds)

    def distribution(self) -> Distribution:
        return Distribution(tuple(self.counts), self.total)


class Statistics(Counters):
    """The counters and the distributions of one pool."""

    __slots__ = ("connect_seconds", "creates", "popped", "uses", "waits")

    def __init__(self) -> None:
        super().__init__()
        self.connect_seconds = 0.0
        self.waits, self.uses, self.creates = Histogram(), Histogram(), Histogram()
        self.popped: dict[str, int] = {}  # the totals when the counters were last set to zero

    def counters(self) -> dict[str, int]:
        """Return the counts since `pop`; like psycopg_pool, without zeros."""
        popped = self.popped
        since = {name: total - popped.get(name, 0) for name, total in self._totals().items()}
        return {name: count for name, count in since.items() if count or name in _ALWAYS}

    def pop(self) -> dict[str, int]:
        """Return `counters`, and start again at zero."""
        counted = self.counters()
        self.popped = {name: self.popped.get(name, 0) + count for name, count in counted.items()}
        return counted

    def _totals(self) -> dict[str, int]:
        return {
            **{metric.key: getattr(self, name) for name, metric in _COUNTERS.items()},
            "connections_lost": self.stale + self.leaked,  # psycopg_pool's key
            "requests_wait_ms": round(1000 * self.waits.total),
            "usage_ms": round(1000 * self.uses.total),
            "connections_ms": round(1000 * self.connect_seconds),
        }


_COUNTERS = metrics_of("counter", Counters)
_ALWAYS = frozenset({"usage_ms"})
