"""Runs the drill and shows it as text, promise by promise."""

from contextlib import closing
from typing import Any

from abs_orm_app.console.layout import INDENT, Layout
from abs_orm_app.drill.admission import NoPool, Refused
from abs_orm_app.drill.runner import Drilled, Outcome, drill
from abs_orm_app.facts.report import Report

NAME_WIDTH = len("✓ explanation")
CLEAR_LINE = "\r\x1b[K"

Stream = Any  # django.core.management.base.OutputWrapper, which passes on unknown attributes


def run_drill(
    report: Report, *, take_most: bool, out: Stream | None, progress: Stream, layout: Layout
) -> Drilled:
    """Drill an alias. `out` gets each outcome; a terminal also shows the current promise."""
    database = report.configured

    def announce(promise: str) -> None:
        _show(progress, f"{CLEAR_LINE}{INDENT}{promise} ...")

    def tell(*lines: str) -> None:
        _show(progress, CLEAR_LINE)
        if out:
            out.write("\n".join(lines))
            out.flush()

    tell(layout.heading("Drill"))
    outcomes: list[Outcome] = []
    try:
        _refuse_after_failure(report)
        with closing(drill(database, take_most=take_most, announce=announce)) as running:
            for outcome in running:
                outcomes.append(outcome)
                tell(*_outcome(outcome, layout))
    except Refused as refused:
        failure, has_pool = refused.failure, not isinstance(refused, NoPool)
        drilled = Drilled(alias=database.alias, refused=failure, has_pool=has_pool)
        paint = layout.style.ERROR if has_pool else str
        tell(*map(paint, layout.wrap(failure.cause)), *layout.fix(failure.hint, ""))
    except BaseException:  # Ctrl-C
        _show(progress, CLEAR_LINE)
        raise
    else:
        drilled = Drilled(alias=database.alias, outcomes=tuple(outcomes))
        tell(*_verdict(drilled, layout))
    return drilled


def _refuse_after_failure(report: Report) -> None:
    """Refuse if the connection test has failed: the drill would wait for the same failure."""
    if report.configured.pools and report.test and report.test.failure:
        raise Refused(report.test.failure)


def _show(progress: Stream, text: str) -> None:
    if progress.isatty():
        progress.write(text, style_func=str, ending="")
        progress.flush()


def _outcome(outcome: Outcome, layout: Layout) -> list[str]:
    style, mark = layout.style, _marks(layout)[outcome.result]
    paint = {"kept": style.SUCCESS, "broken": style.ERROR, "skipped": style.WARNING}
    promise = layout.pairs([(f"{mark} {outcome.name}", outcome.promise)], NAME_WIDTH)
    seen = layout.pairs([("", outcome.seen)], NAME_WIDTH)
    return [*map(paint[outcome.result], promise), *seen]


def _marks(layout: Layout) -> dict[str, str]:
    signs = layout.signs
    return {"kept": signs.good, "broken": signs.bad, "skipped": signs.skipped}


def _verdict(drilled: Drilled, layout: Layout) -> list[str]:
    """Show how many promises were kept, and the names of the others."""
    names: dict[str, list[str]] = {verdict: [] for verdict in _marks(layout)}
    for outcome in drilled.outcomes:
        names[outcome.result].append(outcome.name)
    parts = [f"{len(names['kept'])} of {len(drilled.outcomes)} promises were kept"]
    parts += [
        f"{verdict}: {', '.join(names[verdict])}"
        for verdict in ("broken", "skipped")
        if names[verdict]
    ]
    paint = layout.style.SUCCESS if drilled.ok else layout.style.ERROR
    return [paint(line) for line in layout.wrap("; ".join(parts) + ".")]
