"""The pages of docs/ that the app brings along, as HTML: findings link to them.

As much of Markdown as these pages use. `abs_orm_app/checks/guide` has links to their files, which
the wheel has as files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import slugify

from abs_orm_app import checks

FILES = {path.stem: path for path in (Path(checks.__file__).parent / "guide").glob("*.md")}

_ANCHOR = re.compile(r'<a id="([^"]+)"></a>')
_INLINE = re.compile(
    r"""
      `(?P<code>[^`]+)`
    | \[(?P<text>(?:`[^`]*`|[^]`])+)\]\((?P<target>[^)\s]+)\)
    | \*\*(?P<strong>[^*]+)\*\*
    | \*(?P<em>[^*\s][^*]*)\*
    """,
    re.VERBOSE,
)
_FENCE = "```"


def title(markdown: str) -> str:
    return markdown.partition("\n")[0].removeprefix("# ")


def render(markdown: str) -> SafeString:
    """The page without its title."""
    body = markdown.partition("\n")[2]
    return format_html_join("\n", "{}", ((_block(lines),) for lines in _blocks(body)))


def _blocks(markdown: str) -> Iterator[list[str]]:
    """Parts between empty lines; those of a code block are one."""
    block: list[str] = []
    in_code = False
    for line in markdown.splitlines():
        if line.startswith(_FENCE):
            in_code = not in_code
        if line or in_code:
            block.append(line)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _block(lines: list[str]) -> SafeString:
    first = lines[0]
    if first.startswith(_FENCE):
        return format_html("<pre><code>{}</code></pre>", "\n".join(lines[1:-1]))
    if first.startswith("#"):
        return _heading(first)
    if first.startswith("|"):
        return _table(lines)
    if first.startswith(">"):
        return _tagged("blockquote", " ".join(line.lstrip("> ") for line in lines))
    before, items = _items(lines)
    paragraph = _tagged("p", " ".join(before)) if before else SafeString()
    listed = format_html_join("", "<li>{}</li>", ((_inline(item),) for item in items))
    return format_html("{}<ul>{}</ul>", paragraph, listed) if items else paragraph


def _items(lines: list[str]) -> tuple[list[str], list[str]]:
    """The lines before a list, and its items."""
    before: list[str] = []
    items: list[str] = []
    for line in lines:
        if line.startswith("- "):
            items.append(line[2:])
        elif items:
            items[-1] += f" {line.strip()}"
        else:
            before.append(line)
    return before, items


def _heading(line: str) -> SafeString:
    marks, _, text = line.partition(" ")
    anchor = _ANCHOR.match(text)
    text = _ANCHOR.sub("", text)
    tag = f"h{len(marks)}"
    return format_html(
        "<{} id='{}'>{}</{}>", tag, anchor[1] if anchor else slugify(text), _inline(text), tag
    )


def _table(lines: list[str]) -> SafeString:
    cells = (line.strip().removeprefix("|").removesuffix("|").split("|") for line in lines)
    rows = [[cell.strip() for cell in row] for row in cells]
    head, *body = [row for row in rows if set("".join(row)) - set("-: ")]
    return format_html(
        "<div class='pool-scroll'><table><thead>{}</thead><tbody>{}</tbody></table></div>",
        _row("th", head),
        format_html_join("", "{}", ((_row("td", row),) for row in body)),
    )


def _row(tag: str, cells: list[str]) -> SafeString:
    made = format_html_join("", "{}", ((_tagged(tag, cell),) for cell in cells))
    return format_html("<tr>{}</tr>", made)


def _tagged(tag: str, text: str) -> SafeString:
    return format_html("<{}>{}</{}>", tag, _inline(text), tag)


def _inline(text: str) -> SafeString:
    """With its code, links and emphasis."""
    made, end = SafeString(), 0
    for match in _INLINE.finditer(text):
        made += escape(text[end : match.start()]) + _marked(match)
        end = match.end()
    return made + escape(text[end:])


def _marked(match: re.Match[str]) -> SafeString:
    kind = match.lastgroup or ""
    if kind == "target":
        return _link(_inline(match["text"]), match["target"])
    inside = escape(match["code"]) if kind == "code" else _inline(match[kind])
    return format_html("<{}>{}</{}>", kind, inside, kind)


def _link(text: SafeString, target: str) -> SafeString:
    """To a page that is here, or on the web; of another page of docs/, only the text."""
    page, mark, anchor = target.partition("#")
    if page.removesuffix(".md") in FILES:
        target = f"../{page.removesuffix('.md')}/{mark}{anchor}"
    elif page and not page.startswith("https://"):
        return text
    return format_html('<a href="{}">{}</a>', target, text)
