"""Finds connections that are not returned: held for too long, or left behind by a thread.

Django's connection wrapper is a reference cycle: after its thread has ended, only the garbage
collector frees it and its connection. A collection stops the whole process for a moment, so it
needs a reason, and must end before the next deadline. Only the housekeeping thread uses this.
"""

from __future__ import annotations

import gc
import resource
import sys
from collections import defaultdict
from math import inf
from operator import attrgetter

from abs_orm_app.pool import messages
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.core import Core
from abs_orm_app.pool.entry import Entry
from abs_orm_app.pool.holders import own_line
from abs_orm_app.pool.queue import copied

INTERVAL = 10.0  # minimum seconds between two warnings of one place, or `leak_seconds` if longer
COLLECT_AFTER = 1.0  # seconds that a request waits before a collection without another reason
COLLECT_INTERVAL = 30.0  # seconds between two such collections for one pool
MARGIN = 3  # the next collection is assumed to take at most this many times the last one
# Before the first collection: an upper estimate, measured on heaps of small objects.
SECONDS_PER_BYTE = 2.5e-9
RU_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes

_taken_at = attrgetter("taken_at")


class LeakWatch:
    """Watches one pool, for housekeeping. A place is a line of code that takes connections."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._collected_at = -inf
        self._again_at = inf
        self._warned_at: dict[str | None, float] = {}

    def tend(self, now: float) -> float:
        """Warn once for each place and interval; return when to look again (`monotonic`)."""
        seconds = self._core.leak_seconds
        if seconds is None:
            return inf
        for place, entries in self._held_since(now - seconds).items():
            if all(entry.reported for entry in entries):
                continue
            if now - self._warned_at.get(place, -inf) < max(seconds, INTERVAL):
                continue
            self._warned_at[place] = now
            for entry in entries:
                entry.reported = True
            longest = self._core.holder_of(min(entries, key=_taken_at))
            text = messages.held_too_long(self._core.name, longest, more=len(entries) - 1)
            self._core.say(text)
        return now + seconds / 2

    def _held_since(self, before: float) -> dict[str | None, list[Entry]]:
        """Return the connections that were taken before that time, by place."""
        places = defaultdict(list)
        for entry in self._core.in_use:
            if entry.taken_at <= before:
                frames = entry.frames
                places[own_line(frames) if frames else None].append(entry)
        return places

    def collect_garbage(self, now: float) -> bool:
        """Collect garbage that may hold connections; True if that was done.

        Each thread that has ended with a connection is a reason twice, and so is an interruption:
        their frames may live on for a moment. Otherwise a request must have waited long. A
        collection that might not end before the next deadline is postponed until no request waits.
        """
        core = self._core
        if len(core.entries) - len(core.idle) < core.max_size:
            core.owes_collection = False
            return False
        waiters = copied(core.queue.waiters)
        orphans = [e for e in core.in_use if not e.examined and e.may_be_garbage()]
        has_reason = bool(orphans or core.interrupted)
        if waiters and not has_reason and now < self._again_at:
            waits_long = now - waiters[0].began > COLLECT_AFTER
            if not waits_long or now - self._collected_at <= COLLECT_INTERVAL:
                return False
        if not collector.fits(min((waiter.deadline for waiter in waiters), default=inf)):
            core.owes_collection = True
            return False
        core.owes_collection = core.interrupted = False
        for entry in orphans:
            entry.examined = True
        self._collected_at = now
        self._again_at = now + COLLECT_AFTER if has_reason else inf
        collector.collect()
        return True


class Collector:
    """Runs collections, and remembers how long they take."""

    def __init__(self) -> None:
        self._seconds: float | None = None  # how long the last one took

    def fits(self, before: float) -> bool:
        """True if a collection that starts now ends before that moment (`monotonic`)."""
        return monotonic() + self.estimate() < before

    def estimate(self) -> float:
        """An upper estimate of the seconds that the next collection takes."""
        if self._seconds is not None:
            return MARGIN * self._seconds
        return _resident_bytes() * SECONDS_PER_BYTE

    def collect(self) -> None:
        began = monotonic()
        gc.collect()
        self._seconds = monotonic() - began


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RU_MAXRSS_UNIT


collector = Collector()
