"""A collection stops the process: it is not begun where it may pass a deadline."""

from __future__ import annotations

from time import monotonic

from abs_orm_app.pool.garbage import Collector


def test_the_first_collection_is_not_thought_to_take_no_time() -> None:
    collector = Collector()
    assert collector.estimate() > 0.01, "a process with Django has 30 MB and more"
    assert not collector.fits(before=monotonic() + collector.estimate() / 2)
    assert collector.fits(before=monotonic() + 2 * collector.estimate())


def test_the_next_one_may_take_somewhat_longer_than_the_last() -> None:
    collector = Collector()
    collector.collect()
    assert 0 < collector.estimate() < 60
