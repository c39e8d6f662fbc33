"""The page's gauges, charts and words, and the docs that it contains."""

from __future__ import annotations

from typing import Any

import pytest

from abs_orm_app.config.texts import counted
from abs_orm_app.facts.snapshot import GAUGES, HISTOGRAMS, Snapshot, snapshot
from abs_orm_app.integrations.admin_page import charts
from abs_orm_app.integrations.admin_page.history import SPAN, Look, past, percentile
from abs_orm_app.integrations.admin_page.wording import amount, duration
from abs_orm_app.pool.pool import HardenedPool
from abs_orm_app.pool.statistics import BOUNDS, Distribution
from tests.support.pools import give_back, opened, ours
from tests.support.servers import Server

NO_TIMES = Distribution((0,) * (len(BOUNDS) + 1), 0.0)


def shot(**numbers: int) -> Snapshot:
    """A pool of 2 + 2 connections at one moment; everything else is 0."""
    times: Any = dict.fromkeys(HISTOGRAMS, NO_TIMES)
    given: Any = dict.fromkeys(GAUGES, 0) | {"size": 2, "limit": 4} | numbers
    return Snapshot(alias="other", servers=(), pinned={}, trouble={}, cause=None, **given, **times)


# Gauges and charts


def test_the_gauge_shows_where_the_overflow_begins(server: Server) -> None:
    with opened(ours, server.conninfo, min_size=2, max_size=4) as pool:
        assert isinstance(pool, HardenedPool)
        taken = [pool.getconn() for _ in range(3)]
        shape = charts.gauge(snapshot(pool))
        give_back(pool, taken)
    parts = [tuple(part.values()) for part in shape["segments"]]
    assert parts == [("in-use", 0, 500), ("in-use over", 500, 250)]
    assert shape["mark"] == 500


def drawn(*looks: Look) -> tuple[charts.Shape, ...]:
    return charts.charts(past(looks), looks[-1].pool)


def test_a_chart_ends_on_the_right_and_its_axis_ends_at_the_limit() -> None:
    used = [(0, 0), (SPAN / 2, 4), (SPAN, 2)]
    chart = drawn(*(Look(at, shot(in_use=number)) for at, number in used))[0]
    assert (chart["latest"], chart["peak"], chart["top"]) == ("2", "4", "4")
    assert chart["line"] == "150.0,2.0 300.0,32.0"
    assert chart["values"] == "4 2"
    assert (chart["limit"], chart["size"]) == ("2.0", "32.0")


def test_a_chart_marks_the_seconds_in_which_requests_failed() -> None:
    looks = [Look(at, shot(errors=count)) for at, count in ((0, 1), (SPAN / 2, 3), (SPAN, 3))]
    in_use, checkouts, waits = drawn(*looks)
    assert waits["marks"] == ["150.0"]
    assert in_use["marks"] == checkouts["marks"] == []


def test_a_chart_without_a_past_is_empty() -> None:
    assert {(chart["line"], chart["latest"]) for chart in drawn(Look(0, shot()))} == {
        ("", "\N{EN DASH}")
    }


@pytest.mark.parametrize(
    ("peak", "top"), [(0, 1), (0.4, 1), (1, 1), (1.2, 2), (3, 5), (10, 10), (11, 20), (730, 1000)]
)
def test_an_axis_ends_at_a_number_that_a_reader_can_divide(peak: float, top: float) -> None:
    assert charts.round_up(peak) == top


# The past


def test_the_head_of_the_queue_has_waited_since_the_queue_counted_it() -> None:
    looks = [
        Look(0, shot(queued=5)),
        Look(1, shot(queued=6, waiting=1)),  # this one has left the queue since
        Look(2, shot(queued=8, waiting=2)),  # one of these two is the head
        Look(9, shot(queued=9, waiting=3)),
        Look(10, shot(queued=9, waiting=2)),
    ]
    assert past(looks).longest_wait == 8
    assert past(looks[:1]).longest_wait is None


def test_only_the_last_minutes_count() -> None:
    looks = [
        Look(0, shot(checkouts=100, errors=7)),
        Look(10, shot(checkouts=150, errors=8)),
        Look(SPAN + 5, shot(checkouts=170, errors=9)),
    ]
    assert past(looks).checkouts == 20
    assert past(looks).failures(60) == 1
    assert past(looks).covered == SPAN - 5


# Percentiles


def timed(*seconds: float) -> Distribution:
    counts = [0] * (len(BOUNDS) + 1)
    for each in seconds:
        counts[sum(bound < each for bound in BOUNDS)] += 1
    return Distribution(tuple(counts), sum(seconds))


def test_a_percentile_is_within_its_bucket() -> None:
    durations = timed(*[0.003] * 90, *[0.7] * 10)
    half, most = percentile(durations, 0.5), percentile(durations, 0.95)
    assert half is not None
    assert most is not None
    assert 0.0025 < half <= 0.005
    assert 0.5 < most <= 1.0


def test_what_took_no_time_counts_too() -> None:
    assert percentile(timed(0.7), 0.95, at_once=99) == 0.0
    late = percentile(timed(*[0.7] * 10), 0.95, at_once=90)
    assert late is not None
    assert 0.5 < late <= 1.0


def test_of_nothing_there_is_no_percentile_and_beyond_the_last_bucket_only_more() -> None:
    assert percentile(NO_TIMES, 0.5) is None
    assert percentile(timed(31, 99), 0.5) == float("inf")


# Words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "\N{EN DASH}"),
        (0.0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.025, "25 ms"),
        (1.5, "1.5 s"),
        (84.2, "84 s"),
        (720, "12 min"),
        (86400, "24 h"),
        (float("inf"), "> 30 s"),
    ],
)
def test_durations_are_short(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(None, "\N{EN DASH}"), (0, "0"), (7.04, "7.0"), (12.6, "13"), (12345, "12,345")],
)
def test_amounts_are_short(number: float | None, words: str) -> None:
    assert amount(number) == words


def test_one_is_singular() -> None:
    assert counted(1, "request") == "1 request"
    assert counted(0, "request") == "0 requests"
    assert counted(2, "process") == "2 processes"
