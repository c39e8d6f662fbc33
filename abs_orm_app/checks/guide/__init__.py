"""The guide: the pages of docs/ that the package contains, and their entries by topic.

The pages here are links to the files in docs/; the wheel contains them as files.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from abs_orm_app.config.texts import did_you_mean, printable
from abs_orm_app.pool.server_errors import UNKNOWN, classify

# By name; if two pages have an entry of the same name, the first page wins.
_NAMES = ("checks", "troubleshooting", "settings", "sizing", "pgbouncer")
PAGES = {name: Path(__file__).with_name(f"{name}.md") for name in _NAMES}

_HEADING = re.compile(r"(?P<marks>##+) (?:<a id=\"(?P<anchor>[^\"]+)\"></a>)?(?P<title>.+)")
_FENCE = "```"
_MESSAGES = re.compile(r"^\| (.+) \| .*\(#([\w-]+)\).* \|$", re.MULTILINE)
# The table of faults: the entry, the words of every output, and the name in metrics.
_FAULTS = re.compile(r"^\| \[.+\]\(#([\w-]+)\) \| (.+) \| `(.+)` \|$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class GuideEntry:
    """One heading of a page and the text below it, up to the next heading of that level."""

    topic: str  # "E021", "pool-exhausted"; the name of the page for a whole page
    title: str
    text: str  # Markdown


@cache
def entries() -> dict[str, GuideEntry]:
    """Return all entries by topic: the pages' headings in their order, then the whole pages."""
    found: dict[str, GuideEntry] = {}
    for entry in _read_pages():
        found.setdefault(entry.topic, entry)
    return found


def find_entry(topic: str) -> GuideEntry:
    """Find an entry by its topic or by a pasted message. Raises LookupError, with one sentence."""
    plain = topic.strip().rpartition("#")[2].removeprefix("abs_orm_app.").casefold()
    for known, entry in entries().items():
        if known.casefold() == plain.replace(" ", "-"):
            return entry
    if found := _of_message(topic):
        return found
    raise LookupError(
        f"The guide has no topic {topic!r}{did_you_mean(topic, tuple(entries()))};"
        " `manage.py check_pool --explain` lists them."
    )


def _of_message(text: str) -> GuideEntry | None:
    """Find the entry that a message names, that a table lists for it, or that fits its kind."""
    text = printable(text)
    if named := re.search(r"--explain ([\w-]+)", text):
        return entries().get(named[1])
    page, kind = PAGES["troubleshooting"].read_text(encoding="utf-8"), classify(text)
    for anchor, words, name in _FAULTS.findall(page) if kind is UNKNOWN else ():
        if words in text.replace("waits for", "wait for") or text.casefold() == name:
            return entries().get(anchor)
    for messages, anchor in _MESSAGES.findall(page):
        for message in re.findall(r"`([^`]+)`", messages):
            parts = [part.strip() for part in re.split(r"…|\d[\d.]*", message)]
            if re.search(".*".join(map(re.escape, parts)), text, re.IGNORECASE):
                return entries().get(anchor)
    return None if kind is UNKNOWN else entries().get(kind.entry)


def _read_pages() -> Iterator[GuideEntry]:
    pages = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
    for page in pages.values():
        yield from _sections(page.splitlines())
    for name, page in pages.items():
        title, _, text = page.partition("\n")
        yield _entry(name, title.removeprefix("# "), text)


def _sections(lines: list[str]) -> Iterator[GuideEntry]:
    headings = list(_headings(lines))
    for index, (start, heading) in enumerate(headings):
        level = len(heading["marks"])
        later = (at for at, other in headings[index + 1 :] if len(other["marks"]) <= level)
        text = "\n".join(lines[start + 1 : next(later, len(lines))])
        title = heading["title"]
        yield _entry(heading["anchor"] or _slug(title), title, text)


def _headings(lines: list[str]) -> Iterator[tuple[int, re.Match[str]]]:
    """Yield the headings below the page's title, with their line numbers."""
    in_code = False
    for number, line in enumerate(lines):
        in_code ^= line.startswith(_FENCE)
        if not in_code and (heading := _HEADING.fullmatch(line)):
            yield number, heading


def _entry(topic: str, title: str, text: str) -> GuideEntry:
    """Create an entry of unchanged Markdown, except for markup that only a browser needs."""
    text = re.sub(r'<a id="[^"]+"></a>', "", text).replace("\\_", "_")
    return GuideEntry(topic=topic, title=title.replace("`", ""), text=text.strip("\n"))


def _slug(title: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
