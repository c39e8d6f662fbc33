"""The rules on the connection budget, with limits that are made up."""

from __future__ import annotations

import pytest

from abs_orm_app.capacity.budget import Budget, Demand, Limit
from abs_orm_app.checks.budget_rules import budget_findings
from abs_orm_app.checks.finding import Finding
from abs_orm_app.facts.databases import Configured
from tests.support.aliases import facts, from_env


def budget(processes: int, limit: int = 97, aliases: tuple[str, ...] = ("default",)) -> Budget:
    demands = tuple(Demand(alias=alias, size=20, overflow=10) for alias in aliases)
    told = Limit(group=("one",), connections=limit, why=f"this role may open {limit} (...)")
    return Budget(processes=processes, demands=demands, limit=told)


def found_in(budget: Budget, **databases: Configured) -> list[Finding]:
    return budget_findings([budget], databases or {"default": from_env()})


def test_what_fits_has_no_finding() -> None:
    assert found_in(budget(3)) == []
    assert found_in(budget(1, limit=30)) == []


def test_overflow_that_does_not_fit_is_a_warning() -> None:
    [finding] = found_in(budget(4))
    assert finding.id == "abs_orm_app.W021"
    assert "4 processes x (20 + 10) for 'default' = 120 connections" in finding.message
    assert "this role may open 97" in finding.message
    assert "to 24 or less in each process" in finding.hint


def test_a_pool_size_that_does_not_fit_is_an_error() -> None:
    [finding] = found_in(budget(5))
    assert finding.id == "abs_orm_app.E021"
    assert "Even without overflow it is 100." in finding.message


def test_the_pools_of_several_aliases_are_told_to_fit_together() -> None:
    [finding] = found_in(budget(2, aliases=("default", "reports")))
    assert finding.hint == (
        "Run fewer processes, raise the server's limit, or use PgBouncer; or lower size + overflow"
        " of 'default' and 'reports' together to 48 or less in each process."
    )
    assert finding.alias is None


@pytest.mark.parametrize(
    ("processes", "aliases"), [(97, ("default", "reports")), (100, ("default",))]
)
def test_pools_that_cannot_have_one_connection_each_get_fewer_processes(
    processes: int, aliases: tuple[str, ...]
) -> None:
    [finding] = found_in(budget(processes, aliases=aliases))
    assert finding.hint == "Run fewer processes, raise the server's limit, or use PgBouncer."


def test_the_fix_is_a_line_to_copy_in_the_form_of_the_settings() -> None:
    [finding] = found_in(budget(5))
    assert finding.fix == "DB_POOL_SIZE=19 DB_MAX_OVERFLOW=0"
    [finding] = found_in(budget(5), default=facts(OPTIONS={"pool": {"min_size": 20}}))
    assert finding.fix == '"OPTIONS": {"pool": {"min_size": 19, "max_size": 19}}'
