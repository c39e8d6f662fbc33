"""The budget of the fleet, and the advice on the size of pools, as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from abs_orm_app.capacity.advice import PEAK, Advice
from abs_orm_app.capacity.budget import Budget, Demand, largest_that_fit
from abs_orm_app.capacity.queueing import Wait
from abs_orm_app.console.capacity_options import Answer
from abs_orm_app.console.text import INDENT, Style, table, wrap


def sections(answer: Answer, style: Style) -> Iterator[str]:
    """What was asked for."""
    if answer.budgets is not None:
        yield fleet_section(answer.budgets, style)
    if answer.advice is not None:
        yield advice_section(answer.advice, style)


def fleet_section(budgets: Sequence[Budget], style: Style) -> str:
    """What all processes may open, beside what others have open and the server allows."""
    lines = [style.MIGRATE_LABEL("Fleet budget")]
    if not budgets:
        lines += wrap("No server was asked on which each process has a pool of its own.")
    for budget in budgets:
        lines += [*_budget(budget, style), ""]
    return "\n".join(lines).rstrip()


def _budget(budget: Budget, style: Style) -> Iterator[str]:
    others, limit = budget.others, budget.limit.connections
    rest, peak = budget.at_rest + others, budget.at_peak + others
    rows = [("", "normal use", "full overflow")]
    for demand in budget.demands:
        each = demand.size + demand.overflow
        rows.append(
            (
                f"{demand.alias}: {budget.processes} x ({demand.size} + {demand.overflow})",
                f"{budget.processes * demand.size}",
                f"{budget.processes * each}",
            )
        )
    rows += [
        ("other applications now", f"{others}", f"{others}"),
        ("together", f"{rest}", f"{peak}"),
        (f"left of {limit}", f"{limit - rest}", f"{limit - peak}"),
    ]
    why = f"{budget.limit.why[0].upper()}{budget.limit.why[1:]}."
    paint = style.SUCCESS if peak <= limit else style.WARNING if rest <= limit else style.ERROR
    yield from wrap(why)
    yield from table(rows, right=(1, 2))
    yield from map(paint, wrap(_verdict(budget, rest, peak)))


def _verdict(budget: Budget, rest: int, peak: int) -> str:
    limit = budget.limit.connections
    if peak <= limit:
        return "It fits."
    verdict = (
        "It fits in normal use, but not with all of the overflow in use."
        if rest <= limit
        else "It does not fit, not even in normal use."
    )
    if fitting := largest_that_fit(budget):
        pools = ", ".join(_pool(demand) for demand in fitting)
        verdict += f" The largest pools that do: {pools}."
    else:
        verdict += " There is not even one connection for each pool."
    each = sum(demand.size + demand.overflow for demand in budget.demands)
    if processes := budget.room // each:
        noun = "process" if processes == 1 else "processes"
        verdict += f" Or {processes} {noun} with the present ones."
    return verdict


def _pool(demand: Demand) -> str:
    return f"DB_POOL_SIZE={demand.size} DB_MAX_OVERFLOW={demand.overflow} for {demand.alias!r}"


def advice_section(advice: Advice, style: Style) -> str:
    """The waits with some numbers of connections, the pools to set, and what there is to say."""
    each = f" in each of {advice.processes} processes" if advice.processes > 1 else ""
    facts = (
        f"{advice.total.rate:g} requests per second that hold a connection for"
        f" {advice.total.hold * 1000:g} ms: {advice.load.busy:.3g} connections are busy on"
        f" average{each}. Of 100 requests, 99 should wait for {advice.target * 1000:g} ms at most."
    )
    columns = ("connections", "in use", "must wait", "mean wait", "p99 wait", "")
    rows = [columns, *(_row(found, advice) for found in advice.rows)]
    setting = f"DB_POOL_SIZE={advice.size} DB_MAX_OVERFLOW={advice.overflow}"
    meaning = (
        f"The size meets the target at this load; size + overflow meet it at {PEAK} times the"
        " load. p99: of 100 requests, 99 wait no longer."
    )
    return "\n".join(
        [
            style.MIGRATE_LABEL(f"Advice for {advice.alias}"),
            *wrap(facts),
            "",
            *table(rows, right=(0, 1, 2, 3, 4)),
            "",
            INDENT + style.SUCCESS(setting),
            *wrap(meaning),
            *(line for sentence in advice.words for line in ("", *wrap(sentence))),
        ]
    )


def _row(found: Wait, advice: Advice) -> tuple[str, ...]:
    marks = {
        "size": advice.size,
        "size + overflow": advice.size + advice.overflow,
        "configured": advice.now.connections if advice.now else None,
    }
    return (
        f"{found.connections}",
        f"{min(found.utilisation, 1):.0%}",
        f"{found.probability:.1%}",
        _ms(found.mean),
        _ms(found.p99),
        ", ".join(name for name, number in marks.items() if number == found.connections),
    )


def _ms(seconds: float) -> str:
    return "without end" if math.isinf(seconds) else f"{seconds * 1000:.1f} ms"
