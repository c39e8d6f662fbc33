"""Figures and targets as Markdown, which is also what the terminal shows."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import psycopg

from benchmarks.figure import Figure, cells, headings
from benchmarks.peers import BY_NAME, Peer
from benchmarks.targets import Target
from tests.support.servers import Server

RESULTS = "benchmarks/results.md"
PACKAGES = (
    "Django",
    "psycopg",
    "psycopg-pool",
    "django-db-connection-pool",
    "django-pg-real-pool",
    "SQLAlchemy",
)


def document(
    judged: Sequence[Target],
    missing: Mapping[Peer, str],
    command: str,
    plot: str,
) -> str:
    """The page. missing: peers that do not run here, and why; plot: the picture's name."""
    missed = [each for each in judged if not each.kept]
    parts = [
        "# Benchmarks",
        f"`{command}` wrote this page in one run. The peers took turns; figures are medians of the"
        " turns. Each peer is a process with the sample project and the default settings, and a"
        f" PostgreSQL on the same machine. [All results](../{RESULTS}) has every target and every"
        " figure of each peer.",
        surroundings(),
        *(absences(missing)),
        "## Targets that are missed",
        f"Of {len(judged)} targets, {len(judged) - len(missed)} are reached.",
        target_table(missed),
        f"![The figures as bars]({plot})",
    ]
    return "\n\n".join(parts) + "\n"


def results(judged: Iterable[Target], figures: Iterable[Figure]) -> str:
    """Each target, and each figure with its method and its peers."""
    parts = [
        "# All results",
        "[Benchmarks](../docs/benchmarks.md) describes how they were measured.",
        "## Targets",
        target_table(judged),
        *(part for figure in figures for part in (f"## {figure.title}", section(figure))),
    ]
    return "\n\n".join(parts) + "\n"


def section(figure: Figure) -> str:
    return f"{figure.method}\n\n{figure_table(figure)}"


def figure_table(figure: Figure) -> str:
    rows = []
    for row in figure.rows:
        label = BY_NAME[row.peer].label if row.peer in BY_NAME else row.peer
        texts = {**cells(row), "peer": label}
        bold = "**" if row.peer.startswith("ours") else ""
        rows.append([f"{bold}{text}{bold}" for text in texts.values()])
    return _table(headings(type(figure.rows[0])), rows)


def target_table(judged: Iterable[Target]) -> str:
    return _table(
        ["", "to reach", "measured"],
        [
            [each.what, each.bound, each.measured if each.kept else f"**missed**: {each.measured}"]
            for each in judged
        ],
    )


def surroundings() -> str:
    with Server() as server, server.admin() as admin:
        postgresql = admin.info.parameter_status("server_version") or "?"
    versions = {
        "Python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "libpq": psycopg.pq.version_pretty(psycopg.pq.version()),
        "PostgreSQL": postgresql,
        "CPUs": str(os.cpu_count()),
    }
    versions["psycopg"] += f" ({psycopg.pq.__impl__})"
    return _table(list(versions), [list(versions.values())])


def absences(missing: Mapping[Peer, str]) -> list[str]:
    return [
        f"Without {peer.label}, which does not run here: `{why}`" for peer, why in missing.items()
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are also aligned in the text; numbers to the right."""
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        " | ".join(
            text.ljust(width) if index == 0 else text.rjust(width)
            for index, (text, width) in enumerate(zip(cells_, widths, strict=True))
        )
        for cells_ in (head, *rows)
    ]
    rule = " | ".join(
        "-" * width if index == 0 else "-" * (width - 1) + ":" for index, width in enumerate(widths)
    )
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))
