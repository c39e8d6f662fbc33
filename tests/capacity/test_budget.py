"""The connection budget of several processes, on servers that are made up."""

from __future__ import annotations

import pytest

from abs_orm_app.capacity.budget import (
    Budget,
    Demand,
    Limit,
    Load,
    allowance,
    budgets,
    largest_that_fit,
    limits,
)
from tests.support.facts import server_facts


def demand(alias: str = "default", size: int = 20, overflow: int = 10) -> Demand:
    return Demand(alias=alias, size=size, overflow=overflow)


def test_an_ordinary_role_may_not_use_what_is_reserved() -> None:
    found = allowance(server_facts(reserved=5))
    assert found.connections == 92
    assert found.why == "this role may open 92 (max_connections 100 - 8 reserved)"


def test_a_member_of_pg_use_reserved_connections_may() -> None:
    assert allowance(server_facts(reserved=5, may_use_reserved=True)).connections == 97


def test_a_superuser_may_open_all_and_passes_the_limits_of_role_and_database() -> None:
    found = limits(server_facts(superuser=True, role_limit=5, database_limit=6, reserved=5))
    assert [limit.connections for limit in found] == [100]


def test_the_tightest_limit_is_the_allowance() -> None:
    assert allowance(server_facts(role_limit=50, database_limit=30)).why == (
        "database 'shop' takes 30 (its CONNECTION LIMIT)"
    )
    assert allowance(server_facts(role_limit=10, database_limit=30)).why == (
        "role 'app' may open 10 (its CONNECTION LIMIT)"
    )


def test_a_budget_is_processes_times_size_and_overflow() -> None:
    [budget] = budgets([(demand(), server_facts())], 2)
    assert (budget.at_rest, budget.at_peak, budget.per_process) == (40, 60, 48)
    assert budget.arithmetic == "2 processes x (20 + 10) for 'default' = 60 connections"
    [budget] = budgets([(demand(), server_facts())], 1)
    assert budget.arithmetic == "1 process x (20 + 10) for 'default' = 30 connections"


def test_aliases_on_one_server_share_its_budget() -> None:
    [budget] = budgets([(demand(), server_facts()), (demand("reports", 5, 5), server_facts())], 2)
    assert budget.at_peak == 80
    assert budget.arithmetic == (
        "2 processes x ((20 + 10) for 'default' + (5 + 5) for 'reports') = 80 connections"
    )


def test_aliases_on_two_servers_do_not() -> None:
    found = budgets(
        [(demand(), server_facts()), (demand("replica"), server_facts(identity="two"))], 2
    )
    assert [budget.at_peak for budget in found] == [60, 60]


def test_the_limit_of_a_role_counts_only_for_the_aliases_that_use_the_role() -> None:
    one, other = server_facts(role_limit=40), server_facts(role="report")
    found = budgets([(demand(), one), (demand("reports", 5, 5), other)], 1)
    assert [(budget.at_peak, budget.limit.connections) for budget in found] == [(40, 97), (30, 40)]


def test_the_limit_of_a_database_counts_only_for_the_aliases_that_use_the_database() -> None:
    one, other = server_facts(database_limit=40), server_facts(database="wiki")
    found = budgets([(demand(), one), (demand("wiki", 5, 5), other)], 1)
    assert [(budget.at_peak, budget.limit.connections) for budget in found] == [(40, 97), (30, 40)]


def test_the_lowest_of_the_roles_limits_counts() -> None:
    one, other = server_facts(superuser=True), server_facts()
    [budget] = budgets([(demand(), one), (demand("reports"), other)], 1)
    assert budget.limit.connections == 97


# Sessions of other applications


def test_sessions_without_the_projects_name_count_as_other_applications() -> None:
    here = server_facts(
        used=30, used_by_role=20, used_in_database=25, used_by_project=18, role_limit=50
    )
    by_server, by_role = budgets([(demand(), here)], 2)
    assert (by_server.others, by_server.room) == (12, 85)
    assert (by_role.others, by_role.room) == (2, 48)


def test_aliases_of_the_project_do_not_count_as_other_applications() -> None:
    one = server_facts(used=30, used_by_project=10)
    other = server_facts(used=30, used_by_project=15, role="report")
    again = server_facts(used=29, used_by_project=10)
    [budget] = budgets([(demand(), one), (demand("reports"), other), (demand("same"), again)], 1)
    assert budget.others == 5


def test_a_session_that_ended_meanwhile_is_not_counted_as_anothers() -> None:
    first, second = server_facts(used=1, used_by_project=1), server_facts(used=0, used_by_project=0)
    [found] = budgets([(demand("a"), first), (demand("b"), second)], 1)
    assert found.others == 0


# The largest pools that fit


def fitted(room: int, *pools: tuple[int, int], processes: int = 1) -> list[tuple[int, int]]:
    demands = tuple(demand(str(n), size, overflow) for n, (size, overflow) in enumerate(pools))
    limit = Limit(group=("one",), connections=room, why="")
    found = largest_that_fit(Budget(processes=processes, demands=demands, limit=limit))
    return [(demand.size, demand.overflow) for demand in found]


def test_the_overflow_is_lowered_first() -> None:
    assert fitted(97, (20, 10), processes=4) == [(20, 4)]
    assert fitted(80, (20, 10), processes=4) == [(20, 0)]


def test_the_size_is_lowered_after_the_overflow() -> None:
    assert fitted(79, (20, 10), processes=4) == [(19, 0)]
    assert fitted(4, (20, 10), processes=4) == [(1, 0)]


def test_nothing_fits_where_a_process_would_get_no_connection() -> None:
    assert fitted(3, (20, 10), processes=4) == []
    assert fitted(7, (20, 10), (5, 5), processes=4) == []


def test_several_aliases_share_all_connections_in_proportion() -> None:
    assert fitted(35, (20, 10), (5, 5)) == [(20, 7), (5, 3)]
    assert fitted(10, (20, 10), (5, 5)) == [(8, 0), (2, 0)]
    assert fitted(2, (20, 10), (1, 5)) == [(1, 0), (1, 0)]


def test_pools_that_fit_are_not_changed() -> None:
    assert fitted(100, (20, 10), (5, 5), processes=2) == [(20, 10), (5, 5)]


# The pool for a load


@pytest.mark.parametrize(
    ("rps", "processes", "expected"),
    [(50, 1, (5, 3)), (400, 1, (14, 10)), (400, 4, (5, 3)), (1e-6, 7, (1, 0))],
)
def test_a_load_needs_what_it_keeps_busy_and_two_roots_of_that(
    rps: float, processes: int, expected: tuple[int, int]
) -> None:
    found = Load.of(rps, 20 if rps > 50 else 40, processes, server_facts())
    assert (found.size, found.overflow) == expected


def test_the_server_has_room_for_so_many_processes_beside_the_others() -> None:
    assert Load.of(400, 20, 1, server_facts()).fitting == 97 // 24
    assert Load.of(400, 20, 1, server_facts(used=50)).fitting == 47 // 24
    assert Load.of(400, 20, 1, server_facts(role_limit=10)).fitting == 0
    assert Load.of(400, 20, 1, None).fitting is None
