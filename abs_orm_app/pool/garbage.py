"""When to collect garbage that may hold connections, and how long that may stop the process.

Django's connection wrapper is a reference cycle: when its thread ends, only the garbage collector
frees it and its connection. A collection stops the whole process for a moment, so there must be a
reason for it, and it must end before the next deadline. Only the housekeeping thread uses this.
"""

from __future__ import annotations

import gc
import resource
import sys
from time import monotonic

COLLECT_AFTER = 1.0  # seconds of waiting after which garbage is collected without another reason
COLLECT_INTERVAL = 30.0  # seconds between two such collections for one pool
MARGIN = 3  # the next collection is assumed to take at most this many times the last one
# Before the first collection: an upper estimate, measured on heaps of small objects.
SECONDS_PER_BYTE = 2.5e-9
RU_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


class Collector:
    """Runs collections, and remembers how long they take."""

    def __init__(self) -> None:
        self._seconds: float | None = None  # how long the last one took

    def fits(self, before: float) -> bool:
        """True if a collection that begins now is over before that moment (`monotonic`)."""
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
