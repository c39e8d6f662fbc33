"""One page for all workers of a gunicorn: a row each, none for a dead one; one can be pinned."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.error import HTTPError
from urllib.request import OpenerDirector

import pytest
from selenium.common import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from abs_project.demo import PAGE
from tests.support.browsers import STAFF, Site, browser, needs_browser, prepare, site
from tests.support.login import visitor
from tests.support.pages import now
from tests.support.pools import Call
from tests.support.processes import DEADLINE
from tests.support.servers import Server, wait_until

WORKERS = 3
THREE = {"DB_POOL_SIZE": "2", "DB_MAX_OVERFLOW": "1", "DB_POOL_TIMEOUT": "30"}
SOON = 8.0  # seconds until a dead process is not shown


@pytest.fixture
def shop(server: Server) -> Iterator[Site]:
    prepare(server)
    with site(server, f"--workers={WORKERS}", **THREE) as shop:
        yield shop


@pytest.fixture
def staff(shop: Site) -> OpenerDirector:
    return visitor(f"{shop.url}{PAGE}", STAFF, STAFF)[0]


@pytest.fixture
def look(shop: Site, staff: OpenerDirector) -> Callable[..., list[str]]:
    """Ask for the page several times at once: different workers answer."""

    def page(query: str) -> str:
        with staff.open(f"{shop.url}{PAGE}{query}", timeout=DEADLINE) as answer:
            return str(answer.read().decode())

    def look(query: str = "") -> list[str]:
        with ThreadPoolExecutor(2 * WORKERS) as executor:
            return list(executor.map(page, [query] * 2 * WORKERS))

    return look


def rows(html: str) -> dict[int, str]:
    """The rows of the table of all processes, by process."""
    found = re.findall(r'<tr id="row-(\d+)-default">(.*?)</tr>', html)
    return {int(pid): row for pid, row in found}


def answered_by(html: str) -> int:
    found = re.search(r"Answered by process <code>[^<]*:(\d+)</code>", html)
    assert found
    return int(found[1])


def all_have_pools(shop: Site, look: Callable[..., list[str]]) -> set[int]:
    """Have each worker use its pool; returns the workers."""
    found: set[int] = set()

    def every_row_is_there() -> bool:
        shop.web.get(["/slow/?ms=100"] * 12)
        found.update(*map(rows, look()))
        return len(found) >= WORKERS

    wait_until(every_row_is_there, "each worker to have a row", DEADLINE)
    return found


def test_each_worker_shows_a_row_for_each_and_none_for_one_that_was_killed(
    shop: Site, look: Callable[..., list[str]]
) -> None:
    workers = all_have_pools(shop, look)
    assert len(workers) == WORKERS
    answered: dict[int, set[int]] = {}

    def each_has_answered() -> bool:
        answered.update((answered_by(html), set(rows(html))) for html in look())
        return answered.keys() >= workers

    wait_until(each_has_answered, "each worker to answer", DEADLINE)
    assert answered == dict.fromkeys(workers, workers)

    dead = workers.pop()
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: all(dead not in rows(html) for html in look()), "it to be gone", SOON)
    assert all(rows(html).keys() >= workers for html in look())


def test_a_worker_can_be_pinned_and_is_shown_whoever_answers(
    shop: Site, server: Server, look: Callable[..., list[str]]
) -> None:
    workers = all_have_pools(shop, look)
    slow = Call(shop.web.get, ["/slow/?ms=60000"])
    try:

        def busy() -> list[int]:
            return [pid for pid, row in rows(look()[0]).items() if ">1 of 3<" in row]

        wait_until(lambda: len(busy()) == 1, "one worker to be busy", DEADLINE)
        (pinned,) = busy()
        (html, *_) = pages = look(f"?process={pinned}")
        assert f'<a href="?process={pinned}" aria-current="true">{pinned}</a>' in html
        seen: set[int] = set()
        while pages:
            for html in pages:
                seen.add(answered_by(html))
                assert re.search(r'aria-label="1 in use, \d idle and 0 being opened, of 3 ', html)
                assert re.search(r'<tr id="holder-default-.*GET /slow/', html)
            pages = [] if seen - {pinned} else look(f"?process={pinned}")
        (other, *_) = workers - {pinned}
        assert all("0 in use" in html for html in look(f"?process={other}"))

        os.kill(pinned, signal.SIGKILL)
        gone = f"Process {pinned} is gone."
        wait_until(lambda: all(gone in html for html in look(f"?process={pinned}")), gone, SOON)
    finally:
        server.cancel()
        slow.join(DEADLINE)


@needs_browser
@pytest.mark.parametrize("javascript", [True, False])
def test_a_reader_pins_a_worker_with_the_keyboard_and_keeps_it(
    shop: Site, look: Callable[..., list[str]], javascript: bool
) -> None:
    (pid, *_) = sorted(all_have_pools(shop, look))
    with browser(javascript=javascript) as chromium:
        shop.log_in(chromium, STAFF)

        def is_pinned() -> bool:
            with suppress(WebDriverException):  # the page was replaced in between
                chromium.find_element(By.LINK_TEXT, str(pid)).send_keys(Keys.ENTER)
            return chromium.current_url.endswith(f"?process={pid}")

        wait_until(is_pinned, "the row", DEADLINE)
        seen = set()

        def has_been_refreshed(said: str) -> bool:
            html = chromium.page_source
            if said in html:
                seen.update(re.findall("<time [^>]*>([0-9:]+)", html))
            return len(seen) > 2

        pinned = f"The pools below are those of process <code>{socket.gethostname()}:{pid}</code>."
        wait_until(lambda: has_been_refreshed(pinned), "two refreshes", DEADLINE)
        assert chromium.current_url.endswith(f"?process={pid}")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: f"Process {pid} is gone." in chromium.page_source, "its end", DEADLINE)


def test_a_server_that_is_down_is_told_once(
    shop: Site, staff: OpenerDirector, server: Server
) -> None:
    server.stop()
    said = ""

    def is_told() -> bool:  # an answer of the server counts for a moment
        nonlocal said
        with pytest.raises(HTTPError) as answer:
            staff.open(f"{shop.url}{PAGE}", timeout=DEADLINE)
        said = now(answer.value.read().decode())
        return said.startswith("default: the server cannot be reached.")

    wait_until(is_told, "the server to be told", DEADLINE)
    assert "your session could not be looked up. You see this page" in said
    assert said.count("connection to server on socket") == 1
