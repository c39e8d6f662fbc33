"""What a figure is: a title, how it was measured, and rows that know how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

from benchmarks.worker import Worker

HEADING = "heading"
WRITTEN = "written"


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    rounds: turns of each peer, where a turn is a loop of `seconds`.
    few_rounds: the same, where a turn is one event, as a restart of the server.
    slow_rounds: the same, where a turn takes seconds, as `load_seconds` of full load.
    outage: seconds that the server is away.
    wrong: seconds that an address leads to the wrong server, and `after`: of writes after that.
    patience: seconds after which a client that still has no success is given up.
    """

    rounds: int
    seconds: float
    few_rounds: int
    slow_rounds: int
    load_seconds: float
    outage: float
    wrong: float
    after: float
    patience: float


FULL = Effort(
    rounds=21,
    seconds=0.1,
    few_rounds=5,
    slow_rounds=9,
    load_seconds=1.5,
    outage=10.0,
    wrong=8.0,
    after=15.0,
    patience=100.0,
)
QUICK = Effort(
    rounds=3,
    seconds=0.1,
    few_rounds=2,
    slow_rounds=1,
    load_seconds=1.5,
    outage=3.0,
    wrong=2.0,
    after=4.0,
    patience=10.0,
)


@dataclass(frozen=True)
class Figure:
    title: str
    method: str
    rows: Sequence[Any]  # dataclasses of one kind, with a field `peer`, all made by `column`


def column(heading: str, written: Callable[[Any], str] = str) -> Any:
    """A field of a row: its heading in the table, and how its value is written there."""
    return field(metadata={HEADING: heading, WRITTEN: written})


def headings(kind: type) -> list[str]:
    return [each.metadata[HEADING] for each in fields(kind)]


def cells(row: Any) -> dict[str, str]:
    """The values of a row as they are written, by the name of the field."""
    return {each.name: each.metadata[WRITTEN](getattr(row, each.name)) for each in fields(row)}


def duration(seconds: float) -> str:
    if seconds == inf:
        return "never"
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds * 1e6)} µs"


def _three_digits(number: float) -> str:
    return f"{number:.{max(0, 3 - len(str(int(number))))}f}"


def times(ratio: float) -> str:
    return f"{ratio:.2f} ×"  # noqa: RUF001


def hundredths(number: float) -> str:
    return f"{number:.2f}"


def whole(number: float) -> str:
    return f"{number:.0f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def kilobytes(count: float) -> str:
    return f"{count / 1000:.0f} kB"


@dataclass(frozen=True)
class Timing:
    """How long one thing took: the median of the rounds, and their range, in seconds."""

    peer: str = column("")
    median: float = column("median", duration)
    low: float = column("lowest", duration)
    high: float = column("highest", duration)
    ratio: float = column("to ours", times)


def timings(measured: Mapping[str, Sequence[float]]) -> list[Timing]:
    """Rows for the seconds that each peer, by its name, took in each round."""
    ours = statistics.median(measured["ours"])
    return [
        Timing(peer, median, min(rounds), max(rounds), median / ours)
        for peer, rounds in measured.items()
        for median in [statistics.median(rounds)]
    ]


def interleaved(
    workers: Iterable[Worker], rounds: int, turn: Callable[[Worker], float]
) -> dict[str, list[float]]:
    """Give each peer its turn in each round, so that what disturbs a round disturbs all alike."""
    measured: dict[str, list[float]] = {worker.peer.name: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            measured[worker.peer.name].append(turn(worker))
    return measured
