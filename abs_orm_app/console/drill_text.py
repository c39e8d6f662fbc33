"""A drill as text, promise by promise, while it goes on."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from abs_orm_app.console.text import INDENT, Style, pairs, wrap
from abs_orm_app.drill.runner import Drilled, NoPool, Outcome, Refused, drill
from abs_orm_app.facts.report import Report

MARKS = {"kept": "✓", "broken": "✗", "skipped": "-"}
PLAIN_MARKS = {"kept": "+", "broken": "x", "skipped": "-"}  # where the others cannot be written
NAME_WIDTH = len("✓ explanation")
CLEAR_LINE = "\r\x1b[K"

Stream = Any  # django.core.management.base.OutputWrapper: it hands on what it does not define


def run_drill(
    report: Report, *, take_most: bool, out: Stream | None, progress: Stream, style: Style
) -> Drilled:
    """Drill the alias of a report, telling `out`, if there is one, what became of each promise.

    If `progress` is a terminal, it shows which promise is looked at.
    """
    database = report.configured

    def announce(promise: str) -> None:
        _show(progress, f"{CLEAR_LINE}{INDENT}{promise} ...")

    def tell(*lines: str) -> None:
        _show(progress, CLEAR_LINE)
        if out:
            out.write("\n".join(lines))
            out.flush()

    tell(style.MIGRATE_LABEL("Drill"))
    outcomes: list[Outcome] = []
    try:
        _refuse_again(report)
        with closing(drill(database, take_most=take_most, announce=announce)) as running:
            for outcome in running:
                outcomes.append(outcome)
                tell(*_outcome(outcome, style, _marks(out)))
    except Refused as refused:
        failure, has_pool = refused.failure, not isinstance(refused, NoPool)
        drilled = Drilled(alias=database.alias, refused=failure, has_pool=has_pool)
        tell(*_refusal(drilled, style))
    except BaseException:  # Ctrl-C
        _show(progress, CLEAR_LINE)
        raise
    else:
        drilled = Drilled(alias=database.alias, outcomes=tuple(outcomes))
        tell(*_verdict(drilled, style))
    return drilled


def _refuse_again(report: Report) -> None:
    """Where the report has failed already, do not wait for the same a second time."""
    if report.configured.pools and report.test and report.test.failure:
        raise Refused(report.test.failure)


def _show(progress: Stream, text: str) -> None:
    if progress.isatty():
        progress.write(text, style_func=str, ending="")
        progress.flush()


def _marks(out: Stream | None) -> dict[str, str]:
    try:
        "".join(MARKS.values()).encode(getattr(out, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return PLAIN_MARKS
    return MARKS


def _outcome(outcome: Outcome, style: Style, marks: dict[str, str]) -> list[str]:
    """The promise, and below it what was seen."""
    paint = {"kept": style.SUCCESS, "broken": style.ERROR, "skipped": style.WARNING}
    promise = pairs([(f"{marks[outcome.verdict]} {outcome.name}", outcome.promise)], NAME_WIDTH)
    seen = pairs([("", outcome.seen)], NAME_WIDTH)
    return [*map(paint[outcome.verdict], promise), *seen]


def _refusal(drilled: Drilled, style: Style) -> list[str]:
    if drilled.refused is None:
        return []
    cause, hint = wrap(drilled.refused.cause), wrap(drilled.refused.hint)
    return [*map(style.ERROR, cause), *hint] if drilled.has_pool else [*cause, *hint]


def _verdict(drilled: Drilled, style: Style) -> list[str]:
    """How many promises were kept, and the names of those that were not."""
    names: dict[str, list[str]] = {verdict: [] for verdict in MARKS}
    for outcome in drilled.outcomes:
        names[outcome.verdict].append(outcome.name)
    parts = [f"{len(names['kept'])} of {len(drilled.outcomes)} promises were kept"]
    parts += [
        f"{verdict}: {', '.join(names[verdict])}"
        for verdict in ("broken", "skipped")
        if names[verdict]
    ]
    paint = style.SUCCESS if drilled.ok else style.ERROR
    return [paint(line) for line in wrap("; ".join(parts) + ".")]
