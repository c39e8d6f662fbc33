"""The arithmetic of connections, on made-up servers."""

from __future__ import annotations

from typing import Any

from abs_orm_app.budget import Demand, allowance, budgets, limits
from abs_orm_app.server import ServerFacts


def server(**facts: Any) -> ServerFacts:
    defaults = {
        "identity": "one",
        "version": "18.0",
        "address": "db:5432",
        "database": "shop",
        "role": "app",
        "superuser": False,
        "tls": True,
        "tls_version": "TLSv1.3",
        "tls_cipher": "x",
        "in_recovery": False,
        "read_only": False,
        "max_connections": 100,
        "superuser_reserved": 3,
        "reserved": 0,
        "may_use_reserved": False,
        "role_limit": None,
        "database_limit": None,
        "used": 0,
        "used_by_role": 0,
        "used_in_database": 0,
        "settings": {},
    }
    return ServerFacts(**(defaults | facts))


def demand(alias: str = "default", size: int = 20, overflow: int = 10) -> Demand:
    return Demand(alias=alias, size=size, overflow=overflow)


def test_an_ordinary_role_may_not_use_what_is_reserved() -> None:
    found = allowance(server(reserved=5))
    assert found.connections == 92
    assert found.why == "this role may open 92 (max_connections 100 - 8 reserved)"


def test_a_member_of_pg_use_reserved_connections_may() -> None:
    assert allowance(server(reserved=5, may_use_reserved=True)).connections == 97


def test_a_superuser_may_open_all_and_passes_the_limits_of_role_and_database() -> None:
    found = limits(server(superuser=True, role_limit=5, database_limit=6, reserved=5))
    assert [limit.connections for limit in found] == [100]


def test_the_tightest_limit_is_the_allowance() -> None:
    assert allowance(server(role_limit=50, database_limit=30)).why == (
        "database 'shop' takes 30 (its CONNECTION LIMIT)"
    )
    assert allowance(server(role_limit=10, database_limit=30)).why == (
        "role 'app' may open 10 (its CONNECTION LIMIT)"
    )


def test_a_budget_is_processes_times_size_and_overflow() -> None:
    [budget] = budgets([(demand(), server())], 2)
    assert (budget.at_rest, budget.at_peak, budget.per_process) == (40, 60, 48)
    assert budget.arithmetic == "2 processes x (20 + 10) for 'default' = 60 connections"


def test_one_process_is_said_in_the_singular() -> None:
    [budget] = budgets([(demand(), server())], 1)
    assert budget.arithmetic == "1 process x (20 + 10) for 'default' = 30 connections"


def test_aliases_on_one_server_share_its_budget() -> None:
    [budget] = budgets([(demand(), server()), (demand("reports", 5, 5), server())], 2)
    assert budget.at_peak == 80
    assert budget.arithmetic == (
        "2 processes x ((20 + 10) for 'default' + (5 + 5) for 'reports') = 80 connections"
    )


def test_aliases_on_two_servers_do_not() -> None:
    found = budgets([(demand(), server()), (demand("replica"), server(identity="two"))], 2)
    assert [budget.at_peak for budget in found] == [60, 60]


def test_the_limit_of_a_role_counts_only_for_the_aliases_that_use_the_role() -> None:
    one, other = server(role_limit=40), server(role="report")
    found = budgets([(demand(), one), (demand("reports", 5, 5), other)], 1)
    assert [(budget.at_peak, budget.limit.connections) for budget in found] == [(40, 97), (30, 40)]


def test_the_limit_of_a_database_counts_only_for_the_aliases_that_use_the_database() -> None:
    one, other = server(database_limit=40), server(database="wiki")
    found = budgets([(demand(), one), (demand("wiki", 5, 5), other)], 1)
    assert [(budget.at_peak, budget.limit.connections) for budget in found] == [(40, 97), (30, 40)]


def test_where_roles_see_the_limit_of_a_server_differently_the_lower_counts() -> None:
    one, other = server(superuser=True), server()
    [budget] = budgets([(demand(), one), (demand("reports"), other)], 1)
    assert budget.limit.connections == 97
