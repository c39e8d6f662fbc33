"""An entry of the guide as text for a terminal. The guide is Markdown, of the kind in docs/."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from abs_orm_app.checks.guide import Entry, entries, find_entry
from abs_orm_app.config.variables import did_you_mean
from abs_orm_app.console.layout import INDENT, Layout

_FENCE = "```"
_LINK = re.compile(r"\[((?:`[^`]*`|[^]`])+)\]\(([^)\s]+)\)")
_ANCHOR = re.compile(r'<a id="[^"]+"></a>')


def explanation(topic: str, layout: Layout) -> str:
    """The entry of a topic; for "", the topics.

    Raises LookupError, one sentence, for an unknown topic.
    """
    if not topic:
        return topics_text(layout)
    try:
        return entry_text(find_entry(topic), layout)
    except LookupError:
        raise LookupError(
            f"The guide has no topic {topic!r}{did_you_mean(topic, tuple(entries()))};"
            " `manage.py check_pool --explain` lists them."
        ) from None


def entry_text(entry: Entry, layout: Layout) -> str:
    """The title, and the text below it."""
    blocks = ["\n".join(_block(lines, layout)) for lines in _blocks(list(entry.lines))]
    title = map(layout.style.MIGRATE_HEADING, layout.wrap(_plain(entry.title), 0))
    return "\n\n".join(["\n".join(title), *blocks])


def topics_text(layout: Layout) -> str:
    """All topics with their titles."""
    rows = [(topic, _plain(entry.title)) for topic, entry in entries().items()]
    return "\n".join([layout.heading("Topics"), *layout.pairs(rows)])


def _blocks(markdown: Sequence[str]) -> Iterator[list[str]]:
    """The parts between empty lines; a code block, and each item of a list, is a part."""
    block: list[str] = []
    in_code = False
    for line in markdown:
        begins = line.startswith(("- ", _FENCE)) and not in_code
        if block and (begins or not (line.strip() or in_code)):
            yield block
            block = []
        if line.startswith(_FENCE):
            in_code = not in_code
            if not in_code:
                yield [*block, line]
                block = []
                continue
        if line.strip() or in_code:
            block.append(line)
    if block:
        yield block


def _block(lines: list[str], layout: Layout) -> list[str]:
    first = lines[0]
    if first.startswith(_FENCE):
        return [f"{INDENT * 2}{line}".rstrip() for line in lines[1:-1]]
    if first.startswith("#"):
        return list(map(layout.style.MIGRATE_LABEL, layout.wrap(_plain(first.lstrip("# ")), 0)))
    if first.startswith("|"):
        return _table(lines, layout)
    if first.startswith(">"):
        return layout.wrap(_plain(" ".join(line.lstrip("> ") for line in lines)), 1, "|")
    if first.startswith("- "):
        return layout.wrap(_plain(_joined(lines)[2:]), 1, "-")
    return layout.wrap(_plain(_joined(lines)))


def _table(lines: list[str], layout: Layout) -> list[str]:
    """Each row: its first cell, and the others below it."""
    rows = [
        [_plain(cell.strip()) for cell in line.strip().strip("|").split(" | ")] for line in lines
    ]
    _, *body = [row for row in rows if set("".join(row)) - set("-:| ")]
    found: list[str] = []
    for name, *values in body:
        found += layout.wrap(name)
        for value in filter(None, values):
            found += layout.wrap(value, 3)
    return found


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


def _plain(text: str) -> str:
    """Without the marks of links and emphasis; a link within the guide names its topic."""

    def link(match: re.Match[str]) -> str:
        target = match[2]
        if target.startswith("http"):
            return f"{match[1]} ({target})"
        name, _, anchor = target.partition("#")
        topic = anchor or name.rpartition("/")[2].removesuffix(".md")
        known = topic in entries() and topic.casefold() not in match[1].casefold()
        return f"{match[1]} (--explain {topic})" if known else match[1]

    text = _ANCHOR.sub("", _LINK.sub(link, text))
    return re.sub(r"\*\*([^*]+)\*\*", r"\1", text)
