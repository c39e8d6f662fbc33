"""What a pool counts, with psycopg_pool's keys and a few more.

No lock guards the counters: each count is a `+=` on a plain attribute. With the GIL no other
thread can run between the read and the write (Python switches threads and handles signals at
calls and at backward jumps), so no count is lost; without the GIL one may be lost now and then.
"""

from __future__ import annotations

from abs_orm_app.pool.histogram import Histogram, Timings

POOL_OPENING = "pool_opening"  # connections being opened
TIMEOUTS = "requests_timeouts"  # the errors that were timeouts
STALE = "connections_stale"  # found closed or hung, by the socket, a ping or `check`
EXPIRED = "connections_expired"  # closed because of their age, or by `drain`
MISPLACED = "connections_misplaced"  # closed because of their server's role
LEAKED = "connections_leaked"  # never returned, because their holder is gone
CLEANED = "connections_cleaned"  # their session was changed, and was cleaned
# Deprecated, removed in the next release: psycopg_pool's key, stale and leaked together.
LOST = "connections_lost"


class Statistics:
    """The counters and the distributions of one pool."""

    __slots__ = (
        "cleaned", "connect_errors", "connect_seconds", "connects", "creates", "errors", "expired",
        "leaked", "misplaced", "popped", "queued", "requests", "returns_bad", "stale", "timeouts",
        "uses", "waits",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = 0
        self.queued = 0
        self.errors = 0
        self.timeouts = 0
        self.connects = 0
        self.connect_errors = 0
        self.connect_seconds = 0.0
        self.stale = 0
        self.expired = 0
        self.misplaced = 0
        self.leaked = 0
        self.returns_bad = 0
        self.cleaned = 0
        self.waits, self.uses, self.creates = Histogram(), Histogram(), Histogram()
        self.popped: dict[str, int] = {}  # the totals when the counters were last set to zero

    def counters(self) -> dict[str, int]:
        """Return what was counted since `pop`; as psycopg_pool, without those that are zero."""
        popped = self.popped
        since = {name: total - popped.get(name, 0) for name, total in self._totals().items()}
        return {name: count for name, count in since.items() if count or name in _ALWAYS}

    def pop(self) -> dict[str, int]:
        """Return `counters`, and begin at zero again."""
        counted = self.counters()
        self.popped = {name: self.popped.get(name, 0) + count for name, count in counted.items()}
        return counted

    def timings(self) -> Timings:
        """How long requests waited and held, and connecting took, since the pool was made."""
        return Timings(
            waits=self.waits.distribution(),
            uses=self.uses.distribution(),
            creates=self.creates.distribution(),
        )

    def _totals(self) -> dict[str, int]:
        return {
            "requests_num": self.requests,
            "requests_queued": self.queued,
            "requests_wait_ms": round(1000 * self.waits.total),
            "requests_errors": self.errors,
            TIMEOUTS: self.timeouts,
            "usage_ms": round(1000 * self.uses.total),
            "returns_bad": self.returns_bad,
            "connections_num": self.connects,
            "connections_ms": round(1000 * self.connect_seconds),
            "connections_errors": self.connect_errors,
            STALE: self.stale,
            EXPIRED: self.expired,
            MISPLACED: self.misplaced,
            LEAKED: self.leaked,
            CLEANED: self.cleaned,
            LOST: self.stale + self.leaked,
        }


_ALWAYS = frozenset({"usage_ms"})
