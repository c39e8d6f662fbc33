"""The buckets that durations are counted in."""

from __future__ import annotations

from abs_orm_app.pool.histogram import Histogram


def test_each_duration_is_recorded() -> None:
    histogram, seen = Histogram(), list[float]()
    histogram.add(1.0)
    histogram.record = seen.append
    histogram.add(2.0)
    assert seen == [2.0]
    assert histogram.distribution().count == 2
