"""Formats the facts of check_pool as JSON. docs/check_pool.md describes the document."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from abs_orm_app.capacity.budget import Budget, allowance, largest_that_fit
from abs_orm_app.checks.finding import Finding
from abs_orm_app.config.variables import SCHEMA
from abs_orm_app.console.budget import Planned
from abs_orm_app.console.profiles import Comparison
from abs_orm_app.console.verdict import Verdict
from abs_orm_app.facts.report import Report
from abs_orm_app.facts.server import ServerFacts
from abs_orm_app.facts.wording import LEVELS

if TYPE_CHECKING:
    from abs_orm_app.drill.runner import Drilled


def as_json(
    reports: Sequence[Report],
    findings: Sequence[Finding],
    comparison: Comparison | None,
    drills: Sequence[Drilled] | None,
    planned: Planned,
    verdict: Verdict,
) -> str:
    """Return one JSON document, with null instead of NaN and infinity."""
    document = {
        "schema": SCHEMA,
        "ok": not verdict.problems,
        "exit_code": verdict.exit_code,
        "summary": verdict.summary,
        "problems": verdict.problems,
        "databases": [_database(report) for report in reports],
        "findings": [_finding(finding) for finding in findings],
        "comparison": comparison and {**_plain(comparison), "matches": comparison.matches},
        "drills": drills and [_plain(drilled) | {"ok": drilled.ok} for drilled in drills],
        "fleet": planned.budgets and [_budget(budget) for budget in planned.budgets],
        "load": planned.load,
    }
    return json.dumps(_plain(document), indent=2, allow_nan=False)


def _database(report: Report) -> dict[str, Any]:
    server = report.server
    allowed = allowance(server).connections if isinstance(server, ServerFacts) else None
    return {"alias": report.configured.alias, **_plain(report), "allowed": allowed}


def _finding(finding: Finding) -> dict[str, Any]:
    return {**_plain(finding), "level": LEVELS[finding.level], "explain": finding.explained_by}


def _budget(budget: Budget) -> dict[str, Any]:
    return {
        **_plain(budget),
        "at_rest": budget.at_rest,
        "at_peak": budget.at_peak,
        "fits": budget.at_peak <= budget.room,
        "largest": largest_that_fit(budget),
    }


def _plain(value: Any) -> Any:
    """Convert dataclasses to dicts, without the fields hidden from `repr`: they contain secrets."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value) if each.repr}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
