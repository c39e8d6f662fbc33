"""How long clients waited for, held, and the pool took to open, connections: counted in buckets."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

# Seconds, from the use for one quick query to the default timeout.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10, 30)


@dataclass(frozen=True)
class Distribution:
    """A histogram as it was at one moment. `counts` has one place more than `BOUNDS`."""

    counts: tuple[int, ...]
    total: float  # seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound in seconds, and how many were no longer; infinity last."""
        return zip((*BOUNDS, float("inf")), accumulate(self.counts), strict=True)


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What a pool has timed so far."""

    waits: Distribution  # of the requests that found no idle connection
    uses: Distribution
    creates: Distribution


class Histogram:
    """Counts durations. Without a lock, as `statistics.py` explains.

    `samples`: the last durations themselves, for one who needs each and takes them out; None, the
    default, keeps none. `samples_kept`: how many a new histogram keeps at most.
    """

    __slots__ = ("counts", "samples", "total")

    samples_kept: ClassVar[int] = 0

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self.samples: deque[float] | None = None
        if self.samples_kept:
            self.keep_samples()

    def keep_samples(self) -> None:
        self.samples = deque(maxlen=self.samples_kept)

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds
        if self.samples is not None:
            self.samples.append(seconds)

    def distribution(self) -> Distribution:
        return Distribution(tuple(self.counts), self.total)
