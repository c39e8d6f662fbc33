"""The output of check_pool as JSON. docs/check_pool.md describes the schema, which is stable."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from abs_orm_app.capacity.advice import Advice
from abs_orm_app.capacity.budget import Budget, allowance, largest_that_fit
from abs_orm_app.capacity.queueing import Wait
from abs_orm_app.checks.finding import Finding
from abs_orm_app.config.broken_settings import SCHEMA
from abs_orm_app.console.capacity_options import Answer
from abs_orm_app.console.profiles import Comparison
from abs_orm_app.console.verdict import Verdict
from abs_orm_app.facts.active import Active
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.wording import LEVELS

if TYPE_CHECKING:
    from abs_orm_app.drill.runner import Drilled


def as_json(
    reports: Iterable[Report],
    findings: Iterable[Finding],
    comparison: Comparison | None,
    drills: Sequence[Drilled] | None,
    planned: Answer,
    verdict: Verdict,
) -> str:
    """One JSON document, with null in place of NaN and infinity."""
    document = {
        "schema": SCHEMA,
        "ok": not verdict.problems,
        "exit_code": verdict.exit_code,
        "summary": verdict.summary,
        "problems": [asdict(problem) for problem in verdict.problems],
        "databases": [_database(report) for report in reports],
        "findings": [_finding(finding) for finding in findings],
        "comparison": _comparison(comparison) if comparison else None,
        "drills": None if drills is None else [_drilled(drilled) for drilled in drills],
        "fleet": planned.budgets and [_budget(budget) for budget in planned.budgets],
        "advice": planned.advice and _advice(planned.advice),
    }
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def _database(report: Report) -> dict[str, Any]:
    database = report.configured
    return {
        "alias": database.alias,
        "engine": database.engine,
        "vendor": database.vendor,
        "mode": database.mode,
        "address": database.address,
        "address_source": database.address_source,
        "configured": [asdict(setting) for setting in database.settings],
        "active": _active(report.active, database),
        "server": _server(report.server),
        "connection_test": _test(report),
        "failures": _failures(report),
    }


def _active(active: Active | Failure | None, database: Configured) -> dict[str, Any] | None:
    if not isinstance(active, Active):
        return None
    return {**asdict(active), "differs": active.differs(database)}


def _server(server: ServerFacts | Failure | None) -> dict[str, Any] | None:
    if not isinstance(server, ServerFacts):
        return None
    return {**asdict(server), "allowed": allowance(server).connections}


def _test(report: Report) -> dict[str, Any] | None:
    if report.test is None:
        return None
    times = ("connect_ms", "checkout_ms", "query_ms")
    return {"ok": report.test.failure is None} | {
        name: ms if (ms := getattr(report.test, name)) is None else round(ms, 3) for name in times
    }


def _failures(report: Report) -> list[dict[str, str]]:
    sections = {
        "active": report.active,
        "server": report.server,
        "connection_test": report.test and report.test.failure,
    }
    found = [
        {"section": section, **asdict(failure)}
        for section, failure in sections.items()
        if isinstance(failure, Failure)
    ]
    if report.configured.error:
        hint = "Correct ENGINE, or install what it needs."
        found.append({"section": "configured", "cause": report.configured.error, "hint": hint})
    return found


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.id,
        "level": LEVELS[finding.level],
        "alias": finding.alias,
        "message": finding.message,
        "hint": finding.hint,
        "fix": finding.fix or None,
        "guide": finding.guide,
        "explain": finding.explained_by,
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "profile": comparison.profile,
        "matches": comparison.matches,
        "rows": [{**asdict(row), "matches": row.matches} for row in comparison.rows],
    }


def _drilled(drilled: Drilled) -> dict[str, Any]:
    return {
        "alias": drilled.alias,
        "ok": drilled.ok,
        "refused": drilled.refused and asdict(drilled.refused),
        "promises": [
            {**asdict(outcome), "seconds": round(outcome.seconds, 3)}
            for outcome in drilled.outcomes
        ],
    }


def _budget(budget: Budget) -> dict[str, Any]:
    return {
        "processes": budget.processes,
        "pools": [asdict(demand) for demand in budget.demands],
        "at_rest": budget.at_rest,
        "at_peak": budget.at_peak,
        "others": budget.others,
        "allowed": budget.limit.connections,
        "why": budget.limit.why,
        "fits": budget.at_peak <= budget.room,
        "largest": [asdict(demand) for demand in largest_that_fit(budget)],
    }


def _advice(advice: Advice) -> dict[str, Any]:
    return {
        "alias": advice.alias,
        "processes": advice.processes,
        "rps": advice.total.rate,
        "query_ms": advice.total.hold * 1000,
        "target_wait_ms": advice.target * 1000,
        "busy": advice.load.busy,
        "size": advice.size,
        "overflow": advice.overflow,
        "waits": [_wait(found) for found in advice.rows],
        "at_peak": _wait(advice.peak),
        "configured": advice.now and _wait(advice.now),
        "shared": {"size": advice.shared.size, "overflow": advice.shared.overflow},
        "budget": advice.budget and _budget(advice.budget),
        "words": advice.words,
    }


def _wait(found: Wait) -> dict[str, Any]:
    return {
        "connections": found.connections,
        "utilisation": found.utilisation,
        "probability": found.probability,
        "mean_ms": found.mean * 1000,
        "p99_ms": found.p99 * 1000,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
