"""Converts numbers to SVG shapes, which the templates draw."""

from collections.abc import Callable
from math import floor, log10
from typing import Any

from abs_orm_app.facts.snapshot import Snapshot
from abs_orm_app.integrations.admin_page.history import SPAN, Past, Second
from abs_orm_app.integrations.admin_page.wording import amount

WIDTH = 1000.0  # of a gauge
CHART_WIDTH, CHART_HEIGHT = 300.0, 64.0
LINE = 2.0  # room for the line at the top and the bottom


Shape = dict[str, Any]  # the data for a template


def gauge(now: Snapshot) -> Shape:
    """Return the connections as shares of the limit; beyond `mark` they are overflow.

    In use first, then idle, then being opened; the mark splits a segment in two.
    """
    most = max(now.limit, now.connections, 1)  # it may exceed the limit for a moment after `resize`
    segments = []
    begin = 0
    for kind, count in (("in-use", now.in_use), ("idle", now.idle), ("opening", now.opening)):
        end = begin + count
        inside = min(end, max(begin, now.size))
        for part, first, last in ((kind, begin, inside), (f"{kind} over", inside, end)):
            if last > first:
                width = (last - first) / most * WIDTH
                segments.append({"kind": part, "x": first / most * WIDTH, "width": width})
        begin = end
    return {"segments": segments, "mark": min(now.size / most, 1.0) * WIDTH}


def charts(past: Past, now: Snapshot) -> tuple[Shape, ...]:
    size = now.size if now.size < now.limit else None
    return (
        _chart("Connections in use", past, lambda second: second.in_use, now.limit, size),
        _chart("Checkouts per second", past, lambda second: second.checkouts),
        _chart(
            "Requests that had to wait, per second", past, lambda second: second.waits, marked=True
        ),
    )


def _chart(
    label: str,
    past: Past,
    value: Callable[[Second], float],
    limit: int | None = None,
    size: int | None = None,
    *,
    marked: bool = False,
) -> Shape:
    """Return one line for the last minutes; its right end is now, and the axis starts at 0."""
    peak = max(map(value, past.seconds), default=0.0)
    top = max(peak, limit) if limit else round_up(peak)

    def height(number: float) -> float:
        return CHART_HEIGHT - LINE - number / top * (CHART_HEIGHT - 2 * LINE)

    points = [(_x(second), height(value(second))) for second in past.seconds]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    area = ""
    if points:
        bottom = f"{CHART_HEIGHT:g}"
        area = f"{points[0][0]:.1f},{bottom} {line} {points[-1][0]:.1f},{bottom}"
    return {
        "label": label,
        "latest": amount(value(past.seconds[-1]) if past.seconds else None),
        "peak": amount(peak),
        "top": amount(top),  # of the axis
        "line": line,  # points of a polyline
        "values": " ".join(amount(value(second)) for second in past.seconds),
        "area": area,  # of a polygon
        # Heights, and positions on the time axis.
        "limit": f"{height(limit):.1f}" if limit else "",
        "size": f"{height(size):.1f}" if size else "",
        "marks": [f"{_x(second):.1f}" for second in past.seconds if marked and second.failures],
    }


def _x(second: Second) -> float:
    return max(0.0, 1 - second.age / SPAN) * CHART_WIDTH


def round_up(peak: float) -> float:
    """Round up to 1, 2, 5, 10, 20, 50, ..., which are easy to divide."""
    if peak <= 1:
        return 1.0
    power = 10.0 ** floor(log10(peak))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= peak)
