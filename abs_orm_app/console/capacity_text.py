"""The connection budget of all processes, and the advice on pool sizes, as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from abs_orm_app.capacity.advice import PEAK, Advice
from abs_orm_app.capacity.budget import Budget, Demand, largest_that_fit
from abs_orm_app.capacity.queueing import Wait
from abs_orm_app.console.capacity_options import Answer
from abs_orm_app.console.layout import INDENT, Layout

LEAST_MS = 0.05  # milliseconds; less is shown as 0.0


def sections(answer: Answer, layout: Layout) -> Iterator[str]:
    """The sections that were asked for."""
    if answer.budgets is not None:
        yield budget_section(answer.budgets, layout)
    if answer.advice is not None:
        yield advice_section(answer.advice, layout)


def budget_section(budgets: Sequence[Budget], layout: Layout) -> str:
    """What all processes may open, what others have open, and what the server allows."""
    fits = budgets and all(budget.at_peak <= budget.room for budget in budgets)
    lines = [
        layout.heading("Connection budget", layout.signs.good if fits else layout.signs.warning)
    ]
    if not budgets:
        lines += layout.wrap(
            "Unknown: no server answered on which each process has its own connections."
        )
    for budget in budgets:
        lines += [*_budget(budget, layout), ""]
    return "\n".join(lines).rstrip()


def _budget(budget: Budget, layout: Layout) -> Iterator[str]:
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
    style = layout.style
    paint = style.SUCCESS if peak <= limit else style.WARNING if rest <= limit else style.ERROR
    yield from map(paint, layout.wrap(_verdict(budget, rest, peak)))
    yield from layout.wrap(why)
    yield from layout.table(rows, right=(1, 2))


def _verdict(budget: Budget, rest: int, peak: int) -> str:
    limit = budget.limit.connections
    if peak <= limit:
        return "It fits."
    verdict = (
        "It fits in normal use, but not if all processes use their overflow."
        if rest <= limit
        else "It does not fit, not even without overflow."
    )
    if fitting := largest_that_fit(budget):
        pools = ", ".join(_pool(demand) for demand in fitting)
        verdict += f" The largest pools that fit: {pools}."
    else:
        verdict += " There is less than one connection for each pool."
    each = sum(demand.size + demand.overflow for demand in budget.demands)
    if processes := budget.room // each:
        noun = "process" if processes == 1 else "processes"
        verdict += f" Or run {processes} {noun} with the current sizes."
    return verdict


def _pool(demand: Demand) -> str:
    return f"DB_POOL_SIZE={demand.size} DB_MAX_OVERFLOW={demand.overflow} for {demand.alias!r}"


def advice_section(advice: Advice, layout: Layout) -> str:
    """The sizes to set and whether they fit, then the waits that they are based on."""
    columns = ("connections", "in use", "must wait", "mean wait", "p99 wait", "")
    rows = [columns, *(_row(found, advice) for found in _rows_to_show(advice))]
    setting = f"DB_POOL_SIZE={advice.size} DB_MAX_OVERFLOW={advice.overflow}"
    return "\n".join(
        [
            layout.heading(f"Advice for {advice.alias}"),
            INDENT + layout.style.SUCCESS(setting),
            *layout.wrap(_meaning(advice)),
            *(line for sentence in advice.words for line in ("", *layout.wrap(sentence))),
            "",
            *layout.wrap(_load(advice)),
            "",
            *layout.table(rows, right=(0, 1, 2, 3, 4)),
        ]
    )


def _meaning(advice: Advice) -> str:
    return (
        f"With this size, 99 of 100 requests wait {advice.target * 1000:g} ms or less for a"
        f" connection at this load; with the overflow, also at {PEAK} times the load."
    )


def _load(advice: Advice) -> str:
    each = f" in each of {advice.processes} processes" if advice.processes > 1 else ""
    return (
        f"The load: {advice.total.rate:g} requests per second that hold a connection for"
        f" {advice.total.hold * 1000:g} ms. {advice.load.busy:.3g} connections are busy on"
        f" average{each}. p99: of 100 requests, 99 wait no longer."
    )


def _rows_to_show(advice: Advice) -> Iterator[Wait]:
    """Those with a wait, those that are named, and one more: without a wait, all are alike."""
    named = set(_marks(advice).values())
    beyond = False
    for found in advice.rows:
        waits = found.p99 * 1000 >= LEAST_MS
        if waits or found.connections in named or not beyond:
            yield found
        beyond = beyond or not waits


def _marks(advice: Advice) -> dict[str, int | None]:
    return {
        "size": advice.size,
        "size + overflow": advice.size + advice.overflow,
        "configured": advice.now.connections if advice.now else None,
    }


def _row(found: Wait, advice: Advice) -> tuple[str, ...]:
    marks = _marks(advice)
    return (
        f"{found.connections}",
        f"{min(found.utilisation, 1):.0%}",
        f"{found.probability:.1%}",
        _ms(found.mean),
        _ms(found.p99),
        ", ".join(name for name, number in marks.items() if number == found.connections),
    )


def _ms(seconds: float) -> str:
    return "no limit" if math.isinf(seconds) else f"{seconds * 1000:.1f} ms"
