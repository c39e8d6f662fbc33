"""A garbage collection stops the process, so it does not start where it may miss a deadline."""

from __future__ import annotations

from time import monotonic

from abs_orm_app.pool.garbage import Collector


def test_the_first_collection_is_estimated_from_the_memory() -> None:
    collector = Collector()
    assert collector.estimate() > 0.01, "a process with Django has 30 MB and more"
    assert not collector.fits(before=monotonic() + collector.estimate() / 2)
    assert collector.fits(before=monotonic() + 2 * collector.estimate())


def test_the_estimate_follows_the_last_collection() -> None:
    collector = Collector()
    collector.collect()
    assert 0 < collector.estimate() < 60
