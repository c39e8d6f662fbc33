"""How the page writes numbers, times and names."""

from __future__ import annotations

import os

from abs_orm_app.pool.histogram import BOUNDS

NONE = "\N{EN DASH}"


def duration(seconds: float | None) -> str:
    """As in 0.4 ms, 25 ms, 1.5 s, 12 min, 3 h; "> 30 s" for what is beyond the last bucket."""
    if seconds is None:
        return NONE
    if seconds == float("inf"):
        return f"> {BOUNDS[-1]:g} s"
    for below, unit, factor in ((1.0, "ms", 1000.0), (120.0, "s", 1.0), (7200.0, "min", 1 / 60)):
        if seconds < below:
            number = seconds * factor
            return f"{number:.1f} {unit}" if 0 < number < 10 else f"{number:.0f} {unit}"
    return f"{seconds / 3600:.0f} h"


def amount(number: float | None) -> str:
    """A count, or a rate, as short as possible."""
    if number is None:
        return NONE
    return f"{number:.1f}" if 0 < number < 10 and number % 1 else f"{number:,.0f}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """As in "1 request", "8 requests"."""
    return f"{amount(number)} {noun if number == 1 else plural or noun + 's'}"


def place(where: str) -> str:
    """A line of code, or a text that names one, by its path from the process's directory."""
    return where.replace(f"{os.getcwd()}{os.sep}", "", 1)
