"""Rules on the connection budget: what all processes may open, and what the server allows."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from abs_orm_app.capacity.budget import Budget, largest_that_fit
from abs_orm_app.checks.finding import Finding, new_finding
from abs_orm_app.checks.fixes import set_sizes
from abs_orm_app.facts.databases import Configured


def budget_findings(
    budgets: Iterable[Budget], databases: Mapping[str, Configured]
) -> list[Finding]:
    """Return one finding for each limit that all processes together can exceed.

    databases: by alias, so that a fix has the form of the project's settings.
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
    aliases = [demand.alias for demand in budget.demands]
    remedy, fix = "Run fewer processes, raise the server's limit, or use PgBouncer", ""
    # Connections of other applications come and go, so the rule ignores them.
    fitting = largest_that_fit(replace(budget, others=0))
    if fitting:
        whose = "" if len(aliases) == 1 else f" of {' and '.join(map(repr, aliases))} together"
        most = f"{budget.per_process} or less in each process"
        remedy += f"; or lower size + overflow{whose} to {most}"
    if len(fitting) == 1:  # of several aliases, the operator decides which one gets less
        fix = set_sizes(databases[aliases[0]], fitting[0].size, fitting[0].overflow)
    return new_finding(
        number,
        f"{budget.arithmetic}; {budget.limit.why}. {effect}",
        f"{remedy}:" if fix else f"{remedy}.",
        aliases[0] if len(aliases) == 1 else None,
        fix=fix,
    )
