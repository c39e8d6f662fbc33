"""What the pools of this process did in the last minutes: one look a second."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from time import monotonic
from weakref import WeakKeyDictionary

from abs_orm_app.pool.pool import TICK, HardenedPool, observers
from abs_orm_app.pool.snapshot import Snapshot, snapshot

SPAN = 300.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Second:
    """What happened between two looks, and how it was at the second."""

    age: float  # seconds
    in_use: int
    checkouts: float  # per second
    waits: float  # per second: requests that found no idle connection


_looks: WeakKeyDictionary[HardenedPool, deque[tuple[float, Snapshot]]] = WeakKeyDictionary()


def keep() -> None:
    """Begin to look, if nobody has begun."""
    if look not in observers:
        observers.append(look)


def look(pool: HardenedPool) -> None:
    """Remember what the pool is doing now."""
    looks = _looks.setdefault(pool, deque(maxlen=round(SPAN / TICK) + 1))
    looks.append((monotonic(), snapshot(pool)))


def history(pool: HardenedPool) -> list[Second]:
    """The last `SPAN` seconds, the oldest first; empty if nobody has looked yet."""
    now = monotonic()
    looks = [(at, shot) for at, shot in tuple(_looks.get(pool, ())) if now - at <= SPAN]
    return [
        Second(
            age=now - at,
            in_use=after.in_use,
            checkouts=_grown(before.checkouts, after.checkouts) / (at - earlier),
            waits=_grown(before.queued, after.queued) / (at - earlier),
        )
        for (earlier, before), (at, after) in pairwise(looks)
        if at > earlier
    ]


def _grown(before: int, after: int) -> int:
    """By how much a counter has grown; `pop_stats` sets it back to zero."""
    return after - before if after >= before else after
