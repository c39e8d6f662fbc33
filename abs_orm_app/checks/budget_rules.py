"""Rules on the connection budget: what all processes may open, and what the server allows."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from abs_orm_app.capacity.budget import Budget, Demand, largest_that_fit
from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.checks.fixes import set_sizes
from abs_orm_app.facts.databases import Configured


def budget_findings(
    budgets: Iterable[Budget], databases: Mapping[str, Configured]
) -> list[Finding]:
    """One finding for each limit that all processes together can exceed.

    databases: by alias, to word the fix as the project wrote its settings.
    """
    return [
        _exceeded(budget, databases)
        for budget in budgets
        if budget.at_peak > budget.limit.connections
    ]


def _exceeded(budget: Budget, databases: Mapping[str, Configured]) -> Finding:
    number = "W021"
    effect = "If all processes use their overflow, the server refuses some of these connections."
    if budget.at_rest > budget.limit.connections:
        number, effect = "E021", f"Even without overflow it is {budget.at_rest}."
    return new_finding(
        number,
        f"{budget.arithmetic}; {budget.limit.why}. {effect}",
        _remedy(budget),
        budget.demands[0].alias if len(budget.demands) == 1 else None,
        fix=_fitting_sizes(budget, databases),
    )


def _remedy(budget: Budget) -> str:
    if not _fitting(budget):
        return f"{_ELSEWHERE}."
    aliases = [repr(demand.alias) for demand in budget.demands]
    if len(aliases) == 1:
        return (
            f"{_ELSEWHERE}; or lower size + overflow to {budget.per_process} or less in each"
            " process:"
        )
    return (
        f"{_ELSEWHERE}; or lower size + overflow of {' and '.join(aliases)} together to"
        f" {budget.per_process} or less in each process."
    )


_ELSEWHERE = "Run fewer processes, raise the server's limit, or use PgBouncer"


def _fitting_sizes(budget: Budget, databases: Mapping[str, Configured]) -> str:
    fitting = _fitting(budget)
    # Of several aliases, the operator decides which one gets less.
    if len(fitting) != 1 or fitting[0].alias not in databases:
        return ""
    (demand,) = fitting
    return set_sizes(databases[demand.alias], demand.size, demand.overflow)


def _fitting(budget: Budget) -> tuple[Demand, ...]:
    # Connections of other applications come and go, so the rule counts without them.
    return largest_that_fit(replace(budget, others=0))
