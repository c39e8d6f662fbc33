"""The connection budget of check_pool: its arguments, its calculation, and its section."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from abs_orm_app.capacity.budget import (
    Budget,
    Load,
    budgets,
    demands,
    has_one_for_each,
    largest_that_fit,
)
from abs_orm_app.config.texts import counted
from abs_orm_app.console.arguments import Arguments, above_zero, argument
from abs_orm_app.console.layout import Layout
from abs_orm_app.environment import DB_POOL_PROCESSES, SettingsError, pool_processes
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What all processes may open, and the pool for a load; None: not requested."""

    budgets: tuple[Budget, ...] | None = None
    load: Load | None = None


def add_arguments(parser: Arguments) -> None:
    parser.add_argument(
        "--processes",
        type=argument(DB_POOL_PROCESSES.parse),
        metavar="N",
        help="Also show how many connections N processes may open, and how many the server"
        " allows. Default: DB_POOL_PROCESSES.",
    )
    parser.add_argument(
        "--rps",
        type=above_zero,
        metavar="R",
        help="Also compute the pool size for R requests per second in all processes together.",
    )
    parser.add_argument(
        "--hold-ms",
        type=above_zero,
        metavar="MS",
        help="How long each request holds its connection on average, in milliseconds.",
    )


def refuse_half_a_load(options: Mapping[str, Any], databases: Sequence[Configured]) -> None:
    """Raise ValueError, with one sentence, unless the arguments give the load of one alias."""
    given = [options["rps"], options["hold_ms"]]
    if given == [None, None]:
        return
    if None in given:
        raise ValueError("--rps and --hold-ms belong together: give both.")
    names = [database.alias for database in databases if database.vendor == "postgresql"]
    if len(names) != 1:
        which = f"name it with --database ({', '.join(names)})" if names else "there is none here"
        raise ValueError(f"--rps is for one alias on PostgreSQL: {which}.")


def plan(options: Mapping[str, Any], reports: Sequence[Report]) -> Planned:
    rps, hold_ms = options["rps"], options["hold_ms"]
    if not (rps or options["processes"] or DB_POOL_PROCESSES.name in os.environ):
        return Planned()
    try:
        processes = options["processes"] or pool_processes()
    except SettingsError:  # the findings report it
        return Planned()
    answers = [(r.configured, r.server) for r in reports if isinstance(r.server, ServerFacts)]
    load = None
    if rps:
        # An alias without a pool is fine: these are the sizes of the pool that it could have.
        server = next((server for _, server in answers if has_one_for_each(server)), None)
        load = Load.of(rps, hold_ms, processes, server)
    return Planned(budgets=tuple(budgets(demands(answers), processes)), load=load)


def budget_section(planned: Planned, layout: Layout) -> str:
    """Show what all processes may open, what others have open, and what the server allows."""
    found = planned.budgets or ()
    fits = found and all(budget.at_peak <= budget.room for budget in found)
    lines = [
        layout.heading("Connection budget", layout.signs.good if fits else layout.signs.warning)
    ]
    if not found:
        lines += layout.wrap(
            "Unknown: no server answered on which each process has its own connections."
        )
    for budget in found:
        lines += [*_budget(budget, layout), ""]
    if planned.load:
        lines += layout.wrap(_in_words(planned.load))
    return "\n".join(lines).rstrip()


def _in_words(load: Load) -> str:
    room = "" if load.fitting is None else f"; the server has room for {load.fitting} of them"
    return (
        f"{load.rps:.10g} requests per second x {load.hold_ms:g} ms = {load.busy:.10g} busy"
        f" connections: DB_POOL_SIZE={load.size} DB_MAX_OVERFLOW={load.overflow} in"
        f" {counted(load.processes, 'process')}{room}."
    )


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
        pools = ", ".join(
            f"DB_POOL_SIZE={each.size} DB_MAX_OVERFLOW={each.overflow} for {each.alias!r}"
            for each in fitting
        )
        verdict += f" The largest pools that fit: {pools}."
    else:
        verdict += " There is less than one connection for each pool."
    each = sum(demand.size + demand.overflow for demand in budget.demands)
    if processes := budget.room // each:
        verdict += f" Or run {counted(processes, 'process')} with the current sizes."
    return verdict
