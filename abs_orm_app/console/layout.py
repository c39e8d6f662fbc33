"""Lays out text for a terminal: its width, its characters, its colours."""

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NARROWEST, WIDEST = 60, 100  # columns; below, words break; above, lines are hard to read
WITHOUT_TERMINAL = 80  # columns
INDENT = "  "

# django.core.management.color.Style, which gets its attributes at run time.
Style = Any


@dataclass(frozen=True, kw_only=True)
class Signs:
    """Characters that carry a meaning without colour."""

    good: str
    warning: str
    bad: str
    skipped: str


UNICODE = Signs(good="✓", warning="!", bad="✗", skipped="-")
ASCII = Signs(good="+", warning="!", bad="x", skipped="-")


def signs_for(encoding: str | None) -> Signs:
    """Return the signs that an output of this encoding can show; None: any encoding."""
    try:
        (UNICODE.good + UNICODE.bad).encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def terminal_width() -> int:
    """Return the terminal's columns (or COLUMNS), limited to 60 to 100; without one, 80."""
    columns = shutil.get_terminal_size((WITHOUT_TERMINAL, 24)).columns
    return max(NARROWEST, min(columns, WIDEST))


@dataclass(frozen=True, kw_only=True)
class Layout:
    style: Style
    signs: Signs = UNICODE
    width: int = WITHOUT_TERMINAL

    def wrap(self, text: str, depth: int = 1) -> list[str]:
        """Return the text as indented lines."""
        return self._wrapped(text, INDENT * depth)

    def pairs(self, rows: Sequence[tuple[str, str]], width: int = 0) -> list[str]:
        """Return names and values as lines; a long value continues below itself."""
        width = max(width, *(len(name) for name, _ in rows))
        starts = (f"{INDENT}{name.ljust(width)}{INDENT}" for name, _ in rows)
        return [
            line
            for start, (_, value) in zip(starts, rows, strict=True)
            for line in self._wrapped(value, start) or [start.rstrip()]
        ]

    def _wrapped(self, text: str, start: str) -> list[str]:
        return textwrap.wrap(
            text,
            self.width,
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        )

    def table(self, rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
        """Return rows as lines, columns as wide as their widest cell; `right`: columns flush right.

        If a row is too wide, its last cell moves to the next line.
        """
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [
                cell.rjust(width) if index in right else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            line = INDENT + INDENT.join(cells).rstrip()
            if len(line) > self.width:
                line = f"{INDENT}{INDENT.join(cells[:-1]).rstrip()}\n{INDENT * 2}{row[-1]}"
            lines.append(line)
        return lines

    def heading(self, title: str, mark: str = "") -> str:
        """Return the title of a section, after a mark for its result."""
        paint = {
            self.signs.good: self.style.SUCCESS,
            self.signs.warning: self.style.WARNING,
            self.signs.bad: self.style.ERROR,
        }.get(mark, str)
        return (f"{paint(mark)} " if mark else "") + str(self.style.MIGRATE_LABEL(title))

    def fix(self, remedy: str, line: str, depth: int = 1) -> list[str]:
        """Return what to do, and below it the line to copy, which is never wrapped."""
        lines = self._wrapped(remedy, f"{INDENT * depth}Fix: ") if remedy else []
        return [*lines, INDENT * (depth + 2) + line] if line else lines
