"""Records what this process's pools did in the last minutes: one look per second."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from abs_orm_app.facts.report import Usage
from abs_orm_app.facts.snapshot import Snapshot, snapshot
from abs_orm_app.pool.housekeeping import TICK, observers
from abs_orm_app.pool.statistics import BOUNDS, Distribution

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

SPAN = 300.0  # seconds


@dataclass(frozen=True)
class Look:
    at: float  # monotonic
    pool: Snapshot


@dataclass(frozen=True, kw_only=True)
class Second:
    """What happened between two looks, and the state at the later one."""

    age: float  # seconds
    in_use: int
    unused: int  # of these, not needed
    checkouts: float  # per second
    waits: float  # per second: requests that found no idle connection
    failures: int  # requests that got no connection


@dataclass(frozen=True, kw_only=True)
class Past:
    """The last `SPAN` seconds of a pool, or the part of them that was observed."""

    seconds: tuple[Second, ...]  # oldest first
    covered: float  # seconds
    checkouts: int
    queued: int  # checkouts that found no idle connection, including those that still wait
    waits: Distribution  # of the checkouts that found no idle connection
    uses: Distribution
    creates: Distribution
    longest_wait: float | None  # seconds, a lower bound; None: nothing waits

    @property
    def usage(self) -> Usage | None:
        """How the connections were used; None before the second look."""
        looks = len(self.seconds)
        if not looks:
            return None
        return Usage(
            seconds=self.covered,
            in_use=sum(second.in_use for second in self.seconds) / looks,
            unused=sum(second.unused for second in self.seconds) / looks,
            waited=self.queued,
        )

    def failures(self, seconds: float) -> int:
        """Count the requests that got no connection in the last `seconds`."""
        return sum(second.failures for second in self.seconds if second.age < seconds)


_looks: WeakKeyDictionary[HardenedPool, deque[Look]] = WeakKeyDictionary()


def keep() -> None:
    if look not in observers:
        observers.append(look)


def look(pool: HardenedPool) -> None:
    looks = _looks.setdefault(pool, deque(maxlen=round(SPAN / TICK) + 1))
    looks.append(Look(monotonic(), snapshot(pool)))


def history(pool: HardenedPool, now: Snapshot) -> Past:
    return past((*tuple(_looks.get(pool, ())), Look(monotonic(), now)))


def past(looks: Sequence[Look]) -> Past:
    """Compute the past from looks, oldest first; the last one is the present."""
    latest = looks[-1]
    looks = [each for each in looks if latest.at - each.at <= SPAN]
    first = looks[0].pool
    return Past(
        seconds=tuple(
            _second(before, after, latest.at)
            for before, after in pairwise(looks)
            if after.at > before.at
        ),
        covered=latest.at - looks[0].at,
        checkouts=latest.pool.checkouts - first.checkouts,
        queued=latest.pool.queued - first.queued,
        waits=latest.pool.waits.since(first.waits),
        uses=latest.pool.uses.since(first.uses),
        creates=latest.pool.creates.since(first.creates),
        longest_wait=_longest_wait(looks),
    )


def is_exhausted(pool: Snapshot) -> bool:
    """Return True if requests wait because every allowed connection is in use."""
    return bool(pool.waiting) and pool.in_use >= pool.limit


def _second(before: Look, after: Look, now: float) -> Second:
    seconds = after.at - before.at
    return Second(
        age=now - after.at,
        in_use=after.pool.in_use,
        unused=after.pool.unused,
        checkouts=(after.pool.checkouts - before.pool.checkouts) / seconds,
        waits=(after.pool.queued - before.pool.queued) / seconds,
        failures=after.pool.errors - before.pool.errors,
    )


def _longest_wait(looks: Sequence[Look]) -> float | None:
    """Return how long the request at the head of the queue has waited, at least.

    The queue is first in, first out: the requests that wait now are the last ones counted in
    `queued`. So the head joined before the first look that counted it.
    """
    latest = looks[-1]
    if not latest.pool.waiting:
        return None
    before_it = latest.pool.queued - latest.pool.waiting
    since = latest.at
    for each in reversed(looks):
        if each.pool.queued <= before_it:
            break
        since = each.at
    return latest.at - since


def percentile(timed: Distribution, share: float, at_once: int = 0) -> float | None:
    """Return the seconds within which a `share` (0 to 1) of all finished; None: there were none.

    `at_once`: how many more took no time. Within a bucket, durations are assumed to be spread
    evenly, as in Prometheus' histogram_quantile; beyond the last bound, the result is infinity.
    """
    total = at_once + timed.count
    if not total:
        return None
    rank = share * total
    below = at_once
    if rank <= below:
        return 0.0
    lower = 0.0
    for upper, count in zip((*BOUNDS, float("inf")), timed.counts, strict=True):
        if count and rank <= below + count:
            return lower + (upper - lower) * (rank - below) / count
        below += count
        lower = upper
    return float("inf")
