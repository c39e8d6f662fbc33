"""The advice: how large a pool should be for a load, and its words."""

from __future__ import annotations

from time import monotonic
from typing import Any, cast

import pytest

from abs_orm_app.capacity.advice import PEAK, Advice, advise, measured
from abs_orm_app.capacity.budget import Demand
from abs_orm_app.capacity.queueing import Load, wait
from abs_orm_app.environment import MOST_CONNECTIONS
from abs_orm_app.pool.snapshot import snapshot
from tests.support.facts import server_facts
from tests.support.pools import opened, ours
from tests.support.servers import Server


def advised(
    rate: float, processes: int = 1, now: tuple[int, int] = (20, 10), **facts: Any
) -> Advice:
    configured = Demand(alias="default", size=now[0], overflow=now[1])
    return advise(Load(rate=rate, hold=0.02), 0.005, processes, configured, server_facts(**facts))


def words(advice: Advice) -> str:
    return " ".join(advice.words)


def test_the_size_meets_the_target_and_the_overflow_the_peak() -> None:
    found = advised(400)
    most = found.size + found.overflow
    assert wait(found.load, found.size).p99 <= 0.005 < wait(found.load, found.size - 1).p99
    peak = found.load.times(PEAK)
    assert wait(peak, most).p99 <= 0.005 < wait(peak, most - 1).p99


def test_each_process_has_its_share_of_the_load() -> None:
    found = advised(400, processes=8)
    assert found.load.busy == pytest.approx(1)
    assert found.size == advised(50).size
    assert found.shared.size == advised(400).size < 8 * found.size


def test_the_advice_says_when_the_configured_pool_is_too_small() -> None:
    assert "The configured 2 + 1 cannot serve this" in words(advised(400, now=(2, 1)))
    assert "1 of 100 requests waits for more than" in words(advised(400, now=(9, 0)))
    assert "but not at 2 times that" in words(advised(400, now=(14, 0)))
    assert "is enough, and a larger pool would not help" in words(advised(400, now=(14, 10)))
    assert "is more than enough" in words(advised(400, now=(20, 10)))


def test_a_mode_without_a_pool_gets_advice_too() -> None:
    found = advised(400, now=(0, 0))
    assert found.now is None
    assert "configured" not in words(found)


def test_a_pool_of_overflow_only_is_a_pool() -> None:
    found = advised(400, now=(0, 10))
    assert found.now == wait(found.load, 10)


def test_where_it_does_not_fit_the_largest_that_fits_and_pgbouncer_are_named() -> None:
    found = advised(3000, processes=20, max_connections=110)
    assert found.fitting is not None
    said = words(found)
    assert "It does not fit: 20 processes x" in said
    assert f"The largest that fits is {found.fitting.size} + {found.fitting.overflow}: " in said
    assert "One pool for all 20 processes, in PgBouncer, would need only" not in said
    said = words(advised(1000, processes=20, max_connections=90))
    assert "One pool for all 20 processes, in PgBouncer, would need only" in said


def test_sessions_of_other_applications_count() -> None:
    assert "others have 90 of these now" in words(advised(400, used=90))


@pytest.mark.parametrize("rate", [1e-6, 1.0, 49.9, 50.0, 5000.0, 2e6])
@pytest.mark.parametrize("processes", [1, 7, 5000])
def test_every_load_gets_advice(rate: float, processes: int) -> None:
    found = advised(rate, processes)
    assert found.size >= 1
    assert found.overflow >= 0
    assert len(found.rows) <= 16
    assert [w.connections for w in found.rows] == sorted({w.connections for w in found.rows})


def test_an_impossible_load_is_refused() -> None:
    with pytest.raises(ValueError, match="keep 200,000 connections busy"):
        advised(1e7)
    assert MOST_CONNECTIONS < PEAK * 200_000


# The load of a running pool


def test_a_running_pool_has_measured_its_load(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=1, max_size=1) as pool:
        before = snapshot(cast(Any, pool))
        began = monotonic()
        for _ in range(10):
            with pool.connection() as connection:
                connection.execute("SELECT pg_sleep(0.02)")
        hold = (monotonic() - began) / 10
        after = snapshot(cast(Any, pool))
    found = measured(before, after, seconds=2.0)
    assert found.rate == 5
    assert 0.02 <= found.hold <= hold
    with pytest.raises(ValueError, match="served no request"):
        measured(after, after, seconds=2.0)
