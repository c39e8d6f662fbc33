"""Formats numbers, times and names for the page; its templates use these as filters."""

import os
from zlib import crc32

from abs_orm_app.facts.databases import Setting, Value
from abs_orm_app.facts.sessions import Session
from abs_orm_app.facts.wording import format_value
from abs_orm_app.integrations.admin_page.live import HolderGroup
from abs_orm_app.pool.statistics import BOUNDS

NONE = "\N{EN DASH}"
MOST_PIDS = 20  # that are listed for a group of holders; the others are only counted


def duration(seconds: float | None) -> str:
    """Format as 0.4 ms, 25 ms, 1.5 s, 12 min, 3 h; "> 30 s" beyond the last bucket."""
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
    if number is None:
        return NONE
    return f"{number:.1f}" if 0 < number < 10 and number % 1 else f"{number:,.0f}"


def place(where: str | None) -> str:
    """Make the path of a line of code, or in a text, relative to the working directory."""
    return (where or NONE).replace(f"{os.getcwd()}{os.sep}", "", 1)


def key(text: str, more: str | None = None) -> str:
    """Convert texts to a key that may be part of an HTML id."""
    return f"{crc32(f'{text}{chr(0)}{more}'.encode()):08x}"


def pins(group: HolderGroup) -> str:
    """Format as "SET search_path at shop/middleware.py:31 in __call__", or "8: nothing; 4: ..."."""
    found = [(place(text), count) for text, count in group.pins]
    return found[0][0] if len(found) == 1 else "; ".join(f"{n}: {text}" for text, n in found)


def pids(group: HolderGroup) -> str:
    shown = ", ".join(map(str, group.pids[:MOST_PIDS]))
    more = group.count - MOST_PIDS
    return f"{shown} and {more} more" if more > 0 else shown


def session(one: Session) -> str:
    return " ".join(filter(None, (str(one.pid), one.application, one.host)))


def setting_value(setting: Setting, in_effect: Value = None) -> str:
    return format_value(setting.field, setting.value if in_effect is None else in_effect)
