"""The docs as a site: README is its first page, and links that leave docs/ become text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/results.md": "results.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text().replace("](docs/", "](").replace("](../docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to those pages, and show links to source code as text."""
    return LINK.sub(_link, markdown)


def _link(found: re.Match[str]) -> str:
    text, target, anchor = found[1], found[2], found[3] or ""
    if target.startswith(("http:", "https:")):
        return found[0]
    name = target.removeprefix("../")
    if name in PAGES:
        return f"[{text}]({PAGES[name]}{anchor})"
    inside = not target.startswith("..") and (ROOT / "docs" / target).exists()
    return found[0] if inside else text
