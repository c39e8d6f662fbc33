"""Percentiles of durations that were counted in buckets."""

from __future__ import annotations

from abs_orm_app.pool.histogram import BOUNDS, Distribution


def percentile(timed: Distribution, share: float, at_once: int = 0) -> float | None:
    """Seconds that the `share` (0 to 1) of all took at most; None: there were none.

    `at_once`: how many more took no time. Within a bucket the durations are taken to be spread
    evenly, as Prometheus' histogram_quantile does it; beyond the last bound the answer is infinity.
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
