"""Numbers as shapes of SVG, to be drawn by the template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abs_orm_app.integrations.admin_page.history import SPAN, Second
from abs_orm_app.pool.snapshot import Snapshot

WIDTH = 1000.0  # of a gauge
SPARK_WIDTH, SPARK_HEIGHT = 300.0, 48.0


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a gauge."""

    kind: str
    x: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """Connections against the limit; from `mark` on they are overflow."""

    segments: tuple[Segment, ...]
    mark: float


def gauge(now: Snapshot) -> Gauge:
    """In use first, then idle, then being opened; each cut in two where the overflow begins."""
    most = max(now.limit, now.connections, 1)  # more than the limit, for a moment after `resize`
    segments = []
    begin = 0
    for kind, count in (("in-use", now.in_use), ("idle", now.idle), ("opening", now.opening)):
        end = begin + count
        inside = min(end, max(begin, now.size))
        for part, first, last in ((kind, begin, inside), (f"{kind} over", inside, end)):
            if last > first:
                width = (last - first) / most * WIDTH
                segments.append(Segment(kind=part, x=first / most * WIDTH, width=width))
        begin = end
    return Gauge(segments=tuple(segments), mark=min(now.size / most, 1.0) * WIDTH)


@dataclass(frozen=True, kw_only=True)
class Spark:
    """One line over the last minutes; the right end is now."""

    label: str
    latest: float | None  # None: nobody has looked yet
    peak: float
    line: str  # the points of a polyline
    area: str  # of a polygon


def sparks(past: Sequence[Second]) -> list[Spark]:
    return [
        _spark("in use", past, lambda second: second.in_use),
        _spark("checkouts per second", past, lambda second: second.checkouts),
        _spark("waits per second", past, lambda second: second.waits),
    ]


def _spark(label: str, past: Sequence[Second], value: Callable[[Second], float]) -> Spark:
    peak = max(map(value, past), default=0.0)
    points = [
        (
            max(0.0, 1 - second.age / SPAN) * SPARK_WIDTH,
            SPARK_HEIGHT - 2 - value(second) / max(peak, 1.0) * (SPARK_HEIGHT - 4),
        )
        for second in past
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    ends = (points[0][0], points[-1][0]) if points else (0.0, 0.0)
    area = f"{ends[0]:.1f},{SPARK_HEIGHT:g} {line} {ends[1]:.1f},{SPARK_HEIGHT:g}" if points else ""
    return Spark(
        label=label,
        latest=value(past[-1]) if past else None,
        peak=peak,
        line=line,
        area=area,
    )
