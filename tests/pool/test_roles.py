"""Which connections a pool keeps, by the role of their server: tables of cases."""

from __future__ import annotations

from math import inf

import pytest

from abs_orm_app.pool.roles import (
    FORGET,
    MISPLACED_LIFE,
    PREFERRED_LIFE,
    QUIET,
    Expectation,
    Role,
    life,
    makes_suspects,
    role_of,
)

P, S, R, U = Role.PRIMARY, Role.STANDBY, Role.READ_ONLY, Role.UNKNOWN


@pytest.mark.parametrize(
    ("in_hot_standby", "read_only", "role"),
    [
        (b"off", b"off", P),
        (b"on", b"off", S),
        (b"on", b"on", S),
        (b"off", b"on", R),
        (None, None, U),
        (None, b"off", U),
        (None, b"on", R),
    ],
)
def test_the_role_is_what_the_server_reports(
    in_hot_standby: bytes | None, read_only: bytes | None, role: Role
) -> None:
    assert role_of(in_hot_standby, read_only) is role


@pytest.mark.parametrize(
    ("wanted", "wants_primary", "lives"),
    [
        ("", False, {P: inf, S: inf, R: inf, U: inf}),
        ("", True, {P: inf, S: MISPLACED_LIFE, R: MISPLACED_LIFE, U: inf}),
        ("read-write", False, {P: inf, S: 0.0, R: 0.0, U: inf}),
        ("primary", False, {P: inf, S: 0.0, R: inf, U: inf}),
        ("prefer-standby", True, {P: PREFERRED_LIFE, S: inf, R: PREFERRED_LIFE, U: inf}),
        ("standby", True, {P: inf, S: inf, R: inf, U: inf}),
        ("read-only", True, {P: inf, S: inf, R: inf, U: inf}),
        ("any", True, {P: inf, S: inf, R: inf, U: inf}),
    ],
)
def test_how_long_a_connection_is_kept(
    wanted: str, wants_primary: bool, lives: dict[Role, float]
) -> None:
    assert {role: life(wanted, role, wants_primary) for role in lives} == lives


def test_a_pool_wants_a_primary_once_it_has_seen_one() -> None:
    pool = Expectation()
    for role in (S, R, U):
        pool.opened(role, 0.0)
        assert not pool.wants_primary
        assert not pool.ever_wanted_primary
    pool.opened(P, 1.0)
    assert pool.wants_primary
    assert pool.ever_wanted_primary
    pool.opened(S, 2.0)
    assert pool.wants_primary


def test_an_alias_that_only_reads_wants_none_whatever_it_has_seen() -> None:
    pool = Expectation(reads_only=True)
    pool.opened(P, 0.0)
    pool.refused(1.0)
    assert not pool.wants_primary


def test_a_refused_write_says_that_a_primary_is_wanted() -> None:
    pool = Expectation()
    pool.opened(S, 0.0)
    pool.refused(1.0)
    assert pool.wants_primary


def test_an_address_of_primary_and_standbys_is_noticed_if_nobody_writes() -> None:
    pool = Expectation()
    now = 0.0
    while now <= FORGET:
        pool.opened(P, now)
        pool.opened(S, now)
        assert pool.wants_primary
        now += QUIET / 2
    pool.opened(S, now)
    assert not pool.wants_primary
    assert pool.ever_wanted_primary
    pool.opened(P, now)
    assert not pool.wants_primary, "it would begin again"
    pool.refused(now)
    assert pool.wants_primary


def test_two_failovers_are_not_one_long_time_of_standbys() -> None:
    pool = Expectation()
    pool.opened(P, 0.0)
    pool.opened(S, 1.0)
    pool.opened(S, FORGET + 2.0)
    assert pool.wants_primary


def test_refused_writes_keep_the_expectation() -> None:
    pool = Expectation()
    pool.opened(P, 0.0)
    now = 0.0
    while now < 3 * FORGET:
        pool.opened(S, now)
        pool.refused(now)
        now += QUIET / 2
    assert pool.wants_primary


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("57P01", True),
        ("57P02", True),
        ("57P03", True),
        ("08006", True),
        ("08P01", True),
        ("57014", False),  # a statement was cancelled
        ("57P04", False),  # the database was dropped
        ("25006", False),  # of the server's role, which is looked at
        ("40001", False),
        ("23505", False),
        (None, False),
    ],
)
def test_which_errors_make_suspects_of_the_other_connections(
    sqlstate: str | None, expected: bool
) -> None:
    assert makes_suspects(sqlstate) is expected
