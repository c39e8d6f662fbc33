"""Warns of connections that are held for longer than `leak_seconds`."""

from __future__ import annotations

from collections import defaultdict
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING

from abs_orm_app.pool import messages
from abs_orm_app.pool.entry import Entry, own_line
from abs_orm_app.pool.pins import holder_of

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

INTERVAL = 10.0  # seconds between two warnings of one place; `leak_seconds`, if that is more

_taken_at = attrgetter("taken_at")


class LeakWatch:
    """Of one pool, for housekeeping. A place is the project's own line that takes connections."""

    def __init__(self, pool: HardenedPool) -> None:
        self._pool = pool
        self._warned_at: dict[str | None, float] = {}

    def tend(self, now: float) -> float:
        """Warn once for each place and interval; return when to look again (`monotonic`)."""
        seconds = self._pool.leak_seconds
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
            longest = holder_of(self._pool, min(entries, key=_taken_at))
            text = messages.held_too_long(self._pool.name, longest, more=len(entries) - 1)
            self._pool.say(text)
        return now + seconds / 2

    def _held_since(self, before: float) -> dict[str | None, list[Entry]]:
        """The connections that were taken before that time, by place."""
        places = defaultdict(list)
        for entry in list(self._pool.in_use):
            if entry.taken_at <= before:
                frames = entry.frames
                places[own_line(frames) if frames else None].append(entry)
        return places
