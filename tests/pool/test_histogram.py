"""The buckets that durations are counted in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abs_orm_app.pool.statistics import BOUNDS, Distribution, Histogram

SECONDS = st.floats(0, 100) | st.sampled_from(BOUNDS)


def filled(durations: list[float]) -> Distribution:
    histogram = Histogram()
    for seconds in durations:
        histogram.add(seconds)
    return histogram.distribution()


@given(before=st.lists(SECONDS), after=st.lists(SECONDS))
def test_durations_that_stand_for_others_fill_the_same_buckets_with_the_same_sum(
    before: list[float], after: list[float]
) -> None:
    grown = filled(before + after).since(filled(before))
    again = filled([seconds for seconds, count in grown.durations() for _ in range(count)])
    assert again.counts == filled(after).counts
    assert again.total == pytest.approx(sum(after), rel=1e-4, abs=1e-4 * (1 + len(after)))


def test_a_sum_that_lags_behind_its_counts_leaves_each_duration_in_its_bucket() -> None:
    """A reader may come between the two steps of `add`, which takes no lock."""
    for total in (0.0, 1e9):
        lagging = Distribution((1,) * (len(BOUNDS) + 1), total)
        again = filled([seconds for seconds, _ in lagging.durations()])
        assert again.counts == lagging.counts


def test_each_duration_is_recorded() -> None:
    histogram, seen = Histogram(), list[float]()
    histogram.add(1.0)
    histogram.record = seen.append
    histogram.add(2.0)
    assert seen == [2.0]
    assert histogram.distribution().count == 2
