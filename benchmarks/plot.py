"""The figures as one picture: a panel each, a bar for each peer, ours in colour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure, cells
from benchmarks.peers import BY_NAME

OURS = "#1f6f8b"
OTHERS = "#b8bfc6"
NEVER = 100.0  # seconds drawn for what never ends


@dataclass(frozen=True)
class Panel:
    figure: str
    column: str
    title: str
    log: bool = False


PANELS = (
    Panel("checkout", "median", "checkout and return, pool alone", log=True),
    Panel("request", "median", "one request, local socket", log=True),
    Panel("distant-request", "median", "one request, 1 ms away", log=True),
    Panel("burst", "median", "60 threads, pool just opened"),
    Panel("restart", "last", "after a restart, 1 client: until served", log=True),
    Panel("load", "fairness", "200 threads: slowest / mean (more is better)"),
    Panel("elsewhere", "throughput", "200 requests wait for an API: served / s (more is better)"),
)


def lengths(rows: Iterable[Any], column: str) -> list[float]:
    """The length of the bar of each row: its value, unless that never ends."""
    values = (getattr(row, column) for row in rows)
    return [NEVER if value == inf else value for value in values]


def draw(figures: Mapping[str, Figure], path: Path) -> None:
    """Write a PNG with a panel for each figure that is there."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = [panel for panel in PANELS if panel.figure in figures]
    picture, grid = pyplot.subplots(
        -(-len(panels) // 2), 2, figsize=(12, 2.6 * -(-len(panels) // 2)), squeeze=False
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        rows = figures[panel.figure].rows[::-1]
        values = lengths(rows, panel.column)
        bars = axes.barh(
            [BY_NAME[row.peer].label.replace("`", "") for row in rows],
            values,
            color=[OURS if row.peer.startswith("ours") else OTHERS for row in rows],
        )
        axes.bar_label(bars, [cells(row)[panel.column] for row in rows], padding=3, fontsize=8)
        scale = " (log scale)" if panel.log else ""
        axes.set_title(panel.title + scale, fontsize=10, loc="left")
        if panel.log:
            axes.set_xscale("log")
            axes.set_xlim(min(values) / 3, max(values) * 6)
        else:
            axes.set_xlim(0, max(values) * 1.2)
        axes.tick_params(axis="y", labelsize=8, length=0)
        axes.xaxis.set_visible(False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    picture.tight_layout()
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
