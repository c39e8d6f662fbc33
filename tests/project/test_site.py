"""The docs as a site: it needs no other host, not for a picture, a diagram or its search."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.browsers import browser, needs_browser
from tests.support.readme import ROOT, run

WAIT = 60.0  # seconds for the index of the search, on a busy machine
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|object)\b[^>]*?\b(?:src|data)=[\"']?(?P<by_tag>[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon))"
    r"[^>]*?\bhref=[\"']?(?P<by_link>[^\"'\s>]+)"
)
LOADED_BY_STYLE = re.compile(r"(?:url\(|@import\s*)[\"']?(?P<by_style>[^\"')\s;]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    directory = tmp_path_factory.mktemp("site")
    mkdocs = Path(sys.executable).with_name("mkdocs")
    run(mkdocs, "build", "--strict", "--quiet", "--site-dir", directory, cwd=ROOT)
    return directory


def from_another_host(address: str) -> bool:
    return re.match(r"(?:https?:)?//", address) is not None


def test_no_page_loads_a_file_from_another_host(site: Path) -> None:
    loaded = [
        (page.relative_to(site), found[found.lastgroup])
        for page in site.rglob("*.html")
        for found in LOADED.finditer(page.read_text())
        if found.lastgroup
    ]
    assert len({page for page, _ in loaded}) > 15
    assert [each for each in loaded if from_another_host(each[1])] == []


def test_no_style_loads_a_file_from_another_host(site: Path) -> None:
    styles = [(each, each.read_text()) for each in site.rglob("*.css")]
    styles += [(each, each.read_text()) for each in site.rglob("*.html")]
    loaded = [found[1] for _, text in styles for found in LOADED_BY_STYLE.finditer(text)]
    assert loaded
    assert [address for address in loaded if from_another_host(address)] == []


def test_no_diagram_needs_a_script(site: Path) -> None:
    """The theme loads Mermaid from another host, once a page has one of its diagrams."""
    pages = list(site.rglob("*.html"))
    assert pages
    assert [page for page in pages if re.search(r"class=\"?mermaid", page.read_text())] == []


@contextmanager
def served(directory: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def requested(chromium: Chrome) -> list[str]:
    """What the page has asked for, also where nothing answered."""
    script = "return performance.getEntriesByType('resource').map(each => each.name)"
    return [str(name) for name in chromium.execute_script(script)]


@needs_browser
def test_the_search_finds_a_page_and_asks_no_other_host(site: Path) -> None:
    with served(site) as url, browser() as chromium:
        chromium.get(f"{url}leases/")
        field = chromium.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]")
        chromium.execute_script("arguments[0].focus()", field)
        field.send_keys("keepalives")
        found = "a.md-search-result__link"
        links = WebDriverWait(chromium, WAIT).until(
            lambda page: page.find_elements(By.CSS_SELECTOR, found)
        )
        assert any("settings/" in (link.get_attribute("href") or "") for link in links)
        asked = requested(chromium)
    assert asked
    assert [address for address in asked if not address.startswith(url)] == []
