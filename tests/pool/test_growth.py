"""The number of connections to open now: a table of cases, and rules for all cases."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abs_orm_app.pool.growth import (
    REFILL,
    REFILL_RETRY,
    REFILL_RETRY_MOST,
    RETRY_INTERVAL,
    Situation,
    connections_to_open,
    refill_after,
)

# Many threads at a pool that was just opened, on two processors.
BURST = {"size": 20, "limit": 30, "waiting": 60, "cores": 2}
# A pool of 4 + 6, unless said otherwise.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "a full pool that nobody waits for": ({"open": 4}, 0),
    "an empty pool is filled a few at a time": ({}, REFILL),
    "a few are being opened": ({"opening": REFILL}, 0),
    "one is missing": ({"open": 3}, 1),
    "the one that is missing is being opened": ({"open": 3, "opening": 1}, 0),
    "somebody waits until the pool is full: all at once": ({"awaited": True}, 4),
    "the pool is full for who waits until it is": ({"awaited": True, "open": 4}, 0),
    "one waits, and it may grow": ({"open": 4, "waiting": 1}, 1),
    "each that waits gets one": ({"open": 4, "waiting": 3}, 3),
    "one is being opened for who waits": ({"open": 4, "waiting": 1, "opening": 1, "ago": 0.1}, 0),
    "it takes long: one more": ({"open": 4, "waiting": 1, "opening": 1, "ago": 0.2}, 1),
    "at the limit": ({"open": 10, "waiting": 9}, 0),
    "at the limit with those being opened": ({"open": 7, "opening": 3, "waiting": 9}, 0),
    "over the limit, after a resize": ({"open": 12, "waiting": 9}, 0),
    "no more at a time than it may": ({"limit": 99, "waiting": 50, "parallel": 16}, 16),
    "the first one, and the server may be near": ({**BURST, "ago": 0.001}, 4),
    "the first one takes too long for that": ({**BURST, "opening": 4, "ago": 0.02}, 12),
    "the server is near": ({**BURST, "open": 4, "opening": 3, "fastest": 0.004}, 1),
    "the server is near, on many processors": ({**BURST, "cores": 8, "fastest": 0.004}, 16),
    "the server is far away": ({**BURST, "opening": 4, "fastest": 0.045}, 12),
    "the server is not that far away": ({**BURST, "opening": 2, "fastest": 0.02}, 6),
    "a fault just now": ({"waiting": 5, "failing": True, "ago": 0.1}, 0),
    "a fault, and the interval is over: one tries": ({"waiting": 5, "failing": True}, 1),
    "a fault, and nobody waits: not yet": ({"failing": True, "ago": 0.5, "after": 1.0}, 0),
    "a fault, and nobody waits: again after a while": (
        {"failing": True, "ago": 1.0, "after": 1.0},
        1,
    ),
    "a fault that waiting cannot fix, and nobody waits": ({"failing": True, "ago": 99.0}, 0),
    "a fault, and nothing is missing": ({"failing": True, "open": 4, "after": 1.0}, 0),
    "paid for by no one": ({"size": 0}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_each_case_of_the_table(case: str) -> None:
    given, expected = CASES[case]
    given = {"size": 4, "limit": 10, **given}
    given["since_attempt"] = given.pop("ago", 9.0)
    given["refill_after"] = given.pop("after", float("inf"))
    assert connections_to_open(Situation(**given)) == expected


situations = st.builds(
    Situation,
    waiting=st.integers(0, 50),
    awaited=st.booleans(),
    opening=st.integers(0, 20),
    open=st.integers(0, 40),
    size=st.integers(0, 20),
    limit=st.integers(1, 40),
    parallel=st.integers(1, 20),
    failing=st.booleans(),
    since_attempt=st.floats(0, 100),
    refill_after=st.one_of(st.floats(1, 30), st.just(float("inf"))),
).filter(lambda situation: situation.size <= situation.limit)


@given(situations)
def test_the_pool_never_grows_above_its_limit(now: Situation) -> None:
    count = connections_to_open(now)
    assert count >= 0
    assert count == 0 or now.open + now.opening + count <= now.limit


@given(situations)
def test_a_waiting_client_has_an_attempt_within_the_interval(now: Situation) -> None:
    if now.waiting and now.open + now.opening < now.limit and now.since_attempt >= RETRY_INTERVAL:
        assert connections_to_open(now) >= 1


@given(situations)
def test_nothing_is_opened_when_nothing_is_missing(now: Situation) -> None:
    if not now.waiting and now.open + now.opening >= now.size:
        assert connections_to_open(now) == 0 or (now.awaited and now.open < now.size)


@given(situations)
def test_a_server_that_is_down_sees_one_attempt_at_a_time(now: Situation) -> None:
    if now.failing:
        assert connections_to_open(now) <= 1


def test_an_unattended_refill_is_tried_less_often_the_longer_it_fails() -> None:
    assert refill_after(0) == REFILL_RETRY
    assert refill_after(8) == 8
    assert refill_after(3600) == REFILL_RETRY_MOST
