"""The guide: the pages of docs/ that the package carries, and their entries by topic.

The pages here are links to the files in docs/; the wheel contains them as files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# By name; where two pages have an entry of the same name, the first page is meant.
_NAMES = ("checks", "troubleshooting", "settings", "sizing", "pgbouncer", "best-practices")
PAGES = {name: Path(__file__).with_name(f"{name}.md") for name in _NAMES}

_HEADING = re.compile(r"(?P<marks>#+) (?:<a id=\"(?P<anchor>[^\"]+)\"></a>)?(?P<title>.+)")
_FENCE = "```"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One heading of a page and the text below it, up to the next heading of that level."""

    topic: str  # "E021", "pool-exhausted"; the name of the page for a whole page
    page: str
    title: str
    lines: tuple[str, ...]  # Markdown


@cache
def entries() -> dict[str, Entry]:
    """All entries by topic: the headings of the pages in their order, then the whole pages."""
    found: dict[str, Entry] = {}
    for entry in _read_pages():
        found.setdefault(entry.topic, entry)
    return found


def find_entry(topic: str) -> Entry:
    """Find an entry by its topic, in any case, with or without what stands before it.

    Raises LookupError if there is none.
    """
    plain = topic.strip().rpartition("#")[2].removeprefix("abs_orm_app.").casefold()
    for known, entry in entries().items():
        if known.casefold() == plain.replace(" ", "-"):
            return entry
    raise LookupError(topic)


def _read_pages() -> Iterator[Entry]:
    for name, path in PAGES.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        yield from _sections(name, lines)
    for name, path in PAGES.items():
        first, *rest = path.read_text(encoding="utf-8").splitlines()
        yield Entry(topic=name, page=name, title=first.removeprefix("# "), lines=tuple(rest))


def _sections(page: str, lines: list[str]) -> Iterator[Entry]:
    headings = list(_headings(lines))
    for index, (start, level, anchor, title) in enumerate(headings):
        later = (line for line, other, *_ in headings[index + 1 :] if other <= level)
        end = next(later, len(lines))
        yield Entry(
            topic=anchor or _slug(title),
            page=page,
            title=title,
            lines=tuple(lines[start + 1 : end]),
        )


def _headings(lines: list[str]) -> Iterator[tuple[int, int, str | None, str]]:
    """The line, level, anchor and title of each heading below the page's title."""
    in_code = False
    for number, line in enumerate(lines):
        if line.startswith(_FENCE):
            in_code = not in_code
        found = None if in_code else _HEADING.fullmatch(line)
        if found and len(found["marks"]) > 1:
            yield number, len(found["marks"]), found["anchor"], found["title"]


def _slug(title: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
