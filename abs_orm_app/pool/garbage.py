"""When to look for connections that garbage holds, and for how long that may stop the process.

Django's connection wrapper is a cycle: when its thread ends, only the garbage collector frees it,
and the connection that it holds. A collection stops the whole process for a moment, so it has to
be worth it, and to fit in before the next deadline. Used by the housekeeping thread alone.
"""

from __future__ import annotations

import gc
import resource
import sys
from time import monotonic

COLLECT_AFTER = 1.0  # seconds that a request has waited when garbage is looked for without a clue
COLLECT_INTERVAL = 30.0  # seconds between two such looks for one pool
MARGIN = 3  # times the last collection is what the next one may take
# Before the first: what a heap of small objects takes for each byte of the process, and more.
SECONDS_PER_BYTE = 2.5e-9
RU_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


class Collector:
    """Runs collections, and remembers how long they take."""

    def __init__(self) -> None:
        self._seconds: float | None = None  # that the last one took

    def fits(self, before: float) -> bool:
        """True if a collection that begins now is over before that moment (`monotonic`)."""
        return monotonic() + self.estimate() < before

    def estimate(self) -> float:
        """Seconds that the next collection will not exceed, as far as one can know."""
        if self._seconds is not None:
            return MARGIN * self._seconds
        return _resident_bytes() * SECONDS_PER_BYTE

    def collect(self) -> None:
        began = monotonic()
        gc.collect()
        self._seconds = monotonic() - began


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RU_MAXRSS_UNIT
