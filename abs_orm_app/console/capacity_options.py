"""`check_pool --processes` and `--advise`: their arguments, and the sums that answer them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from abs_orm_app.capacity.advice import Advice, advise, check_load_is_feasible
from abs_orm_app.capacity.budget import Budget, Demand, budgets, demands, has_one_for_each
from abs_orm_app.capacity.queueing import Load
from abs_orm_app.config.explain import explain
from abs_orm_app.console.arguments import Arguments, above_zero, argument, number
from abs_orm_app.environment import DB_POOL_PROCESSES, SettingsError, pool_processes
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts

TARGET_MS = 5.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the arguments ask."""

    processes: int | None  # that have these pools; None: as the environment says
    show_budget: bool  # whether to show what all processes may open
    total: Load | None  # of all processes, to advise on; None: no advice is wanted
    target: float  # seconds that 99 of 100 requests may wait


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The sums; None: not asked for."""

    budgets: tuple[Budget, ...] | None = None
    advice: Advice | None = None


def add_arguments(parser: Arguments) -> None:
    parser.add_argument(
        "--processes",
        type=argument(DB_POOL_PROCESSES.parse),
        metavar="N",
        help="Also show what N processes may open, and what the server allows."
        " Default: DB_POOL_PROCESSES.",
    )
    parser.add_argument(
        "--advise",
        action="store_true",
        help="Also advise on the pool size for a load (--rps and --query-ms).",
    )
    parser.add_argument(
        "--rps",
        type=above_zero,
        metavar="R",
        help="Requests per second that use the database, of all processes together.",
    )
    parser.add_argument(
        "--query-ms",
        type=above_zero,
        metavar="MS",
        help="Milliseconds that a request holds its connection on average.",
    )
    parser.add_argument(
        "--target-wait-ms",
        type=number(0),
        metavar="MS",
        help=f"Milliseconds that 99 of 100 requests may wait. Default: {TARGET_MS:g}.",
    )


def read_question(options: Mapping[str, Any], databases: Sequence[Configured]) -> Question:
    """What the arguments ask. Raises ValueError, one sentence, if they cannot be combined."""
    rps, hold_ms, target_ms = (options[n] for n in ("rps", "query_ms", "target_wait_ms"))
    total = None
    if options["advise"]:
        one_alias(databases, "--advise")
        total = _load(rps, hold_ms)
        check_load_is_feasible(total)
    elif any(value is not None for value in (rps, hold_ms, target_ms)):
        raise ValueError("--rps, --query-ms and --target-wait-ms need --advise.")
    return Question(
        processes=options["processes"],
        show_budget=options["processes"] is not None or DB_POOL_PROCESSES.name in os.environ,
        total=total,
        target=(TARGET_MS if target_ms is None else target_ms) / 1000,
    )


def one_alias(databases: Sequence[Configured], option: str) -> Configured:
    """The only alias on PostgreSQL. Raises ValueError, one sentence, if it is not the only one."""
    found = [database for database in databases if database.vendor == "postgresql"]
    if not found:
        raise ValueError(f"{option} is for PostgreSQL, and no alias here is PostgreSQL.")
    if len(found) > 1:
        names = ", ".join(database.alias for database in found)
        raise ValueError(f"{option} is for one alias: name it with --database ({names}).")
    return found[0]


def _load(rps: float | None, hold_ms: float | None) -> Load:
    if rps is None or hold_ms is None:
        raise ValueError(
            "--advise needs --rps (requests per second, of all processes) and --query-ms (how long"
            " each holds its connection). This command cannot measure them: the web processes count"
            f" them, each in its own pool. `{explain('where-to-read-the-two-numbers')}` says where"
            " to read them."
        )
    return Load(rate=rps, hold=hold_ms / 1000)


def answer(question: Question, reports: Sequence[Report]) -> Answer:
    """Do the arithmetic."""
    answers = [(r.configured, r.server) for r in reports if isinstance(r.server, ServerFacts)]
    try:
        processes = question.processes or pool_processes()
    except SettingsError:  # the findings report it
        return Answer()
    advice = None
    if question.total:
        database = one_alias([report.configured for report in reports], "--advise")
        # Also for an alias without a pool: the advice is on the pool that it could have.
        server = next((server for _, server in answers if has_one_for_each(server)), None)
        advice = advise(question.total, question.target, processes, _now(database), server)
    return Answer(
        budgets=tuple(budgets(demands(answers), processes)) if question.show_budget else None,
        advice=advice,
    )


def _now(database: Configured) -> Demand:
    size, overflow = database.value("size"), database.value("overflow")
    if isinstance(size, int) and isinstance(overflow, int):
        return Demand(alias=database.alias, size=size, overflow=overflow)
    return Demand(alias=database.alias, size=0, overflow=0)
