"""How the page writes what it shows: the filters of its templates."""

from __future__ import annotations

import os

from django.urls import reverse

from abs_orm_app.checks.finding import Finding
from abs_orm_app.facts import wording
from abs_orm_app.facts.databases import Setting
from abs_orm_app.integrations.admin_page import charts, guide
from abs_orm_app.integrations.admin_page.overview import Database, Panel
from abs_orm_app.pool.histogram import Distribution
from abs_orm_app.pool.snapshot import Snapshot

gauge = charts.gauge
sparks = charts.sparks


def filled(database: Database) -> float:
    """How far the gauge of a server's connections is filled."""
    return charts.WIDTH * min(database.in_use / max(database.allowance.connections, 1), 1.0)


def duration(seconds: float | None) -> str:
    """As in 0.4 ms, 25 ms, 1.5 s, 12 min, 3 h."""
    if seconds is None:
        return "-"
    for below, unit, factor in ((1.0, "ms", 1000.0), (120.0, "s", 1.0), (7200.0, "min", 1 / 60)):
        if seconds < below:
            number = seconds * factor
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{seconds / 3600:.0f} h"


def amount(number: float | None) -> str:
    """A count, or a rate, as short as it can be."""
    if number is None:
        return "-"
    return f"{number:.1f}" if 0 < number < 10 and number % 1 else f"{number:,.0f}"


def times(now: Snapshot) -> list[tuple[str, int, str, str]]:
    """What was timed: how often, how long in the mean, and how long at most for 95 of 100."""
    rows = (("wait", now.waits), ("use", now.uses), ("connect", now.creates))
    return [
        (what, timed.count, duration(_mean(timed)), _percentile(timed, 0.95))
        for what, timed in rows
    ]


def _mean(timed: Distribution) -> float | None:
    return timed.total / timed.count if timed.count else None


def _percentile(timed: Distribution, share: float) -> str:
    """The bound below which so many are."""
    previous = 0.0
    for bound, count in timed.cumulative():
        if timed.count and count >= share * timed.count:
            return f"≤ {duration(bound)}" if bound != float("inf") else f"> {duration(previous)}"
        previous = bound
    return "-"


def value(setting: Setting) -> str:
    return wording.shown(setting.field, setting.value)


def became(setting: Setting, mode: str) -> str:
    return wording.became(setting, mode)


def in_effect(panel: Panel, setting: Setting) -> str:
    """What the pool has where that is not what is configured."""
    actual = getattr(panel.active, setting.field, None)
    return "" if actual in (None, setting.value) else wording.shown(setting.field, actual)


def place(where: str) -> str:
    """A line of code, by its path from where the process runs."""
    return where.removeprefix(f"{os.getcwd()}{os.sep}")


def without_pool(panel: Panel) -> str:
    return wording.WITHOUT_POOL.get(panel.configured.mode, "No pool.")


def level(finding: Finding) -> str:
    return wording.LEVELS[finding.level].lower()


def guide_url(finding: Finding) -> str:
    """Where this app shows what the docs say of a finding."""
    name, _, anchor = finding.guide.removeprefix("docs/").partition(".md#")
    if name not in guide.FILES:
        return ""
    return f"{reverse('abs_orm_app:guide', args=[name])}#{anchor}"
