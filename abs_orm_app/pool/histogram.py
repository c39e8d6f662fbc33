"""Histograms: how long requests waited for connections and held them, and how long opening took."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from operator import sub

# Seconds, from the use for one quick query to the default timeout.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10, 30)
LEAST_PART = 1e-6  # of a bucket: a bound itself is in the bucket below it


@dataclass(frozen=True)
class Distribution:
    """A histogram as it was at one moment. `counts` has one place more than `BOUNDS`."""

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
        """Durations in seconds, and how often each: in the same buckets, with the same sum.

        For exporters that only accept single durations. Those of one bucket are all the same.
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


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What a pool has timed so far."""

    waits: Distribution  # of the requests that found no idle connection
    uses: Distribution
    creates: Distribution


class Histogram:
    """Counts durations. Without a lock, as `statistics.py` explains.

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
