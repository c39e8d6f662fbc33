"""The pages of docs/ that the app contains, as HTML: findings link to them.

markdown-it-py renders them where it is installed (the extra `page`). Without it a page is shown as
the Markdown that it is, and a link still leads to its entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.utils.text import slugify

from abs_orm_app.checks.guide import PAGES

if TYPE_CHECKING:
    from markdown_it.token import Token

_ANCHOR = re.compile(r'<a id="([^"]+)"></a>')


def title(markdown: str) -> str:
    return markdown.partition("\n")[0].removeprefix("# ")


def render(markdown: str) -> SafeString:
    """The page without its title. The text is the app's own, so its few tags are kept."""
    body = markdown.partition("\n")[2]
    try:
        from markdown_it import MarkdownIt
    except ImportError:
        return as_text(body)
    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(body)
    _name_headings(tokens)
    for token in tokens:
        if token.children:
            token.children = list(_follow_links(token.children))
    html = parser.renderer.render(tokens, parser.options, {})
    html = html.replace("<table>", '<div class="pool-scroll"><table>')
    html = html.replace("</table>", "</table></div>")
    return SafeString(html)


def as_text(body: str) -> SafeString:
    """The page as it is written, in sections that a link can lead to."""
    sections = re.split(r"^(?=##+ )", body, flags=re.MULTILINE)
    return format_html_join(
        "",
        '<section id="{}"><pre>{}</pre></section>',
        ((_name(section.partition("\n")[0]), _ANCHOR.sub("", section)) for section in sections),
    )


def _name(heading: str) -> str:
    """The anchor of a heading: its own, or as GitHub makes it of the text."""
    anchor = _ANCHOR.search(heading)
    return anchor[1] if anchor else slugify(heading)


def _name_headings(tokens: list[Token]) -> None:
    for heading, text in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", _name(text.content))
            text.children = [t for t in text.children or () if t.type != "html_inline"]


def _follow_links(tokens: list[Token]) -> Iterator[Token]:
    """Keep the links to pages that are here, or on the web; of the others, keep the text."""
    kept = True
    for token in tokens:
        if token.type == "link_open":
            target = _target(str(token.attrGet("href") or ""))
            kept = bool(target)
            token.attrSet("href", target)
        if kept or token.type not in ("link_open", "link_close"):
            yield token


def _target(href: str) -> str:
    page, mark, anchor = href.partition("#")
    if page.removesuffix(".md") in PAGES:
        return f"../{page.removesuffix('.md')}/{mark}{anchor}"
    return "" if page and not page.startswith("https://") else href
