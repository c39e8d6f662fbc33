"""The live page in Debian's chromium, on a gunicorn with a pool of two connections and one more."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from abs_project.demo import PAGE
from tests.support.browsers import (
    CUSTOMER,
    STAFF,
    Site,
    browser,
    needs_browser,
    prefer,
    prepare,
    resize,
    site,
)
from tests.support.pools import Call
from tests.support.processes import DEADLINE
from tests.support.servers import Server, wait_until

pytestmark = needs_browser

THREE = {"DB_POOL_SIZE": "2", "DB_MAX_OVERFLOW": "1", "DB_POOL_TIMEOUT": "30"}
MISSPELT = {"DB_POOL_SISE": "2"}  # which is a finding
IN_TIME = 15.0  # seconds, on a busy machine


@pytest.fixture(scope="module")
def shop(module_server: Server) -> Iterator[Site]:
    prepare(module_server)
    with site(module_server, **THREE, **MISSPELT) as shop:
        yield shop


@pytest.fixture(scope="module")
def staffs_browser(shop: Site) -> Iterator[Chrome]:
    with browser() as chromium:
        shop.log_in(chromium, STAFF)
        yield chromium


@pytest.fixture
def chromium(staffs_browser: Chrome, shop: Site) -> Chrome:
    resize(staffs_browser, 1280, 1000)
    prefer(staffs_browser, "light")
    complaints(staffs_browser)  # of the tests before
    visit(staffs_browser, shop)
    return staffs_browser


def visit(chromium: Chrome, shop: Site) -> None:
    began = monotonic()
    chromium.get(f"{shop.url}{PAGE}")
    assert monotonic() - began < IN_TIME


def text(chromium: Chrome, selector: str) -> str:
    """The text at this moment: the page may be replaced at any."""
    return str(
        chromium.execute_script(
            "return document.querySelector(arguments[0])?.innerText ?? ''", selector
        )
    )


def state(chromium: Chrome) -> str:
    """What the page says of the pool: "ok", "overflow", "exhausted" and others."""
    return str(
        chromium.execute_script("return document.querySelector('[data-state]').dataset.state")
    )


def shown_at(chromium: Chrome) -> str:
    return text(chromium, "#pool-live time")


def complaints(chromium: Chrome) -> list[str]:
    """What the browser has to say about the page, as of a breach of its security policy."""
    return [
        entry["message"]
        for entry in chromium.get_log("browser")  # type: ignore[no-untyped-call]
        if "favicon" not in entry["message"]
    ]


def eventually(condition: Callable[[], bool], what: str) -> None:
    wait_until(condition, what, DEADLINE)


@contextmanager
def slow_requests(shop: Site, server: Server, number: int) -> Iterator[Call]:
    """Send requests that hold a connection, or wait for one, until the end of the block."""
    requests = Call(shop.web.get, ["/slow/?ms=60000"] * number)
    try:
        yield requests
    finally:
        wait_until(lambda: server.cancel() == 0 and not requests.is_alive(), "the requests to end")


def test_staff_comes_to_the_page_through_the_login(chromium: Chrome) -> None:
    assert "Connection pools" in text(chromium, "h1")
    assert text(chromium, ".pool-card h2") == "default"
    assert complaints(chromium) == []


def test_others_come_to_the_login_and_no_further(shop: Site) -> None:
    with browser() as chromium:
        visit(chromium, shop)
        assert "/admin/login/" in chromium.current_url
        shop.log_in(chromium, CUSTOMER)
        visit(chromium, shop)
        assert "/admin/login/" in chromium.current_url
        assert "data-state" not in chromium.page_source


def test_it_follows_the_pool_by_itself(chromium: Chrome, shop: Site, module_server: Server) -> None:
    with slow_requests(shop, module_server, 3):
        eventually(lambda: "IN USE\n3" in text(chromium, ".pool-numbers").upper(), "3 in use")
        assert "requests wait" not in text(chromium, "[data-state]")
        assert state(chromium) == "overflow"
    eventually(lambda: "IN USE\n0" in text(chromium, ".pool-numbers").upper(), "none in use")
    eventually(lambda: len(line(chromium).split()) >= 5, "five seconds of the past")
    assert complaints(chromium) == []


def line(chromium: Chrome) -> str:
    """The points of the first chart."""
    script = "return document.querySelector('.pool-chart .line')?.getAttribute('points') ?? ''"
    return str(chromium.execute_script(script))


def test_a_chart_tells_the_value_at_the_pointer(chromium: Chrome) -> None:
    eventually(lambda: len(line(chromium).split()) >= 3, "three seconds of the past")
    chart = chromium.find_element(By.CSS_SELECTOR, ".pool-chart svg")
    right = chart.rect["width"] // 2 - 2
    ActionChains(chromium).move_to_element_with_offset(chart, right, 0).perform()
    assert re.fullmatch(r"\d+, \d+ s ago", text(chromium, "#pool-reading"))
    ActionChains(chromium).move_to_element(chromium.find_element(By.ID, "pool-pause")).perform()
    assert not chromium.find_element(By.ID, "pool-reading").is_displayed()
    chart.send_keys(Keys.ARROW_LEFT)
    assert re.fullmatch(r"\d+, \d+ s ago", text(chromium, "#pool-reading"))
    chromium.execute_script("document.activeElement.blur()")
    assert not chromium.find_element(By.ID, "pool-reading").is_displayed()
    assert complaints(chromium) == []


@pytest.mark.parametrize("width", [768, 390])
def test_a_caption_is_read_without_scrolling(chromium: Chrome, width: int) -> None:
    resize(chromium, width, 900)
    cut = """
        return [...document.querySelectorAll("#pool-live caption:not(.visually-hidden)")]
            .map((caption) => caption.getBoundingClientRect())
            .filter(({ left, right }) => left < 0 || right > innerWidth).length"""
    assert chromium.execute_script(cut) == 0


# The answer to the next refresh is there, and comes when the test wants.
HOLD_BACK = """
    const { send } = XMLHttpRequest.prototype;
    XMLHttpRequest.prototype.send = function (...given) {
        const { onload } = this;
        this.onload = () => { window.letGo = onload; };
        send.apply(this, given);
    };"""


def is_held_back(chromium: Chrome) -> bool:
    return bool(chromium.execute_script("return Boolean(window.letGo)"))


def test_it_can_be_paused_also_while_it_refreshes(chromium: Chrome) -> None:
    button = chromium.find_element(By.ID, "pool-pause")
    chromium.execute_script(HOLD_BACK)
    eventually(lambda: is_held_back(chromium), "a refresh")
    button.click()
    at = shown_at(chromium)
    chromium.execute_script("letGo()")
    with pytest.raises(TimeoutError):
        wait_until(lambda: shown_at(chromium) != at, "nothing", 3)
    assert text(chromium, "#pool-status") == f"Paused at {at}."
    button.click()
    assert text(chromium, "#pool-status") == "Refreshes every 1 seconds."
    chromium.execute_script("window.letGo = null")
    eventually(lambda: is_held_back(chromium), "the next refresh")
    chromium.execute_script("letGo()")
    eventually(lambda: shown_at(chromium) != at, "the page to go on")


def test_a_refresh_leaves_what_the_reader_has_scrolled_to_and_focused(chromium: Chrome) -> None:
    resize(chromium, 390, 900)
    table, focused = "#database-of-default .pool-scroll:last-of-type", "#pool-findings a"
    look = """
        return [document.querySelector(arguments[0]).scrollLeft,
                document.activeElement === document.querySelector(arguments[1])]"""
    chromium.execute_script(
        "document.querySelector(arguments[0]).scrollLeft = 30;"
        "document.querySelector(arguments[1]).focus()",
        *(table, focused),
    )
    at = shown_at(chromium)
    assert chromium.execute_script(look, table, focused) == [30, True]
    eventually(lambda: shown_at(chromium) != at, "a refresh")
    assert chromium.execute_script(look, table, focused) == [30, True]


SELECT = """
    const node = document.querySelector(arguments[0]);
    getSelection().selectAllChildren(node);
    return getSelection().toString();"""


def test_a_refresh_leaves_what_the_reader_has_selected(
    chromium: Chrome, shop: Site, module_server: Server
) -> None:
    with slow_requests(shop, module_server, 1):
        eventually(lambda: bool(text(chromium, ".pids")), "the holder to be shown")
        pid = chromium.execute_script(SELECT, ".pids")
        assert re.fullmatch("[0-9]+", pid.strip())
        for _ in range(2):
            at = shown_at(chromium)
            eventually(lambda at=at: shown_at(chromium) != at, "a refresh")  # type: ignore[misc]
            assert chromium.execute_script("return getSelection().toString()") == pid


def test_a_refresh_leaves_open_what_the_reader_has_opened(chromium: Chrome) -> None:
    assert not chromium.find_element(By.ID, "settings-of-default").get_attribute("open")
    chromium.find_element(By.CSS_SELECTOR, "#settings-of-default summary").click()
    at = shown_at(chromium)
    eventually(lambda: shown_at(chromium) != at, "a refresh")
    assert chromium.find_element(By.ID, "settings-of-default").get_attribute("open")
    assert "DB_POOL_SIZE" in text(chromium, "#settings-of-default")


def test_it_refreshes_without_javascript(shop: Site) -> None:
    with browser(javascript=False) as chromium:
        shop.log_in(chromium, STAFF)
        seen: set[str] = set()

        # Each look takes the page as it is: a refresh may come between two looks for elements.
        def is_fresh() -> bool:
            page = chromium.page_source
            seen.update(re.findall(r"<time [^>]*>([0-9:]+) [A-Z]+</time>", page))
            return len(seen) > 1 and re.search(r'id="pool-pause" hidden', page) is not None

        eventually(is_fresh, "a refresh")


def test_it_is_there_when_the_pool_is_exhausted(
    chromium: Chrome, shop: Site, module_server: Server
) -> None:
    with slow_requests(shop, module_server, 6) as requests:
        eventually(lambda: state(chromium) == "exhausted", "the pool to be exhausted")
        assert re.search("WAITING\n[123]", text(chromium, ".pool-numbers").upper())
        visit(chromium, shop)
        assert requests.is_alive()
    eventually(lambda: state(chromium) in ("ok", "overflow"), "the pool to have idle connections")


def test_it_is_there_when_the_server_is_away_and_comes_back_with_it(
    chromium: Chrome, shop: Site, module_server: Server
) -> None:
    module_server.stop()
    try:
        eventually(lambda: "cannot be reached" in text(chromium, "#pool-now"), "the page to notice")
        assert chromium.title.startswith("\N{WARNING SIGN} ")
        visit(chromium, shop)
        assert state(chromium)
    finally:
        module_server.start()
    eventually(lambda: text(chromium, "#pool-now").startswith("OK"), "the page to be whole again")


def test_it_is_there_when_the_server_hangs(
    chromium: Chrome, shop: Site, module_server: Server
) -> None:
    with module_server.suspended():
        visit(chromium, shop)
        assert "does not answer" in text(chromium, "#pool-now")
    eventually(lambda: text(chromium, "#pool-now").startswith("OK"), "the page to be whole again")


def test_it_says_that_the_web_server_does_not_answer(shop: Site, module_server: Server) -> None:
    with browser() as chromium:
        with site(module_server, **THREE) as gone:
            gone.log_in(chromium, STAFF)
            # Before that there is no script to notice anything.
            pause = chromium.find_element(By.ID, "pool-pause")
            eventually(pause.is_displayed, "the page's script")
            at = shown_at(chromium)
        # A request that was under way is given up after 30 s.
        wait_until(lambda: "No answer" in text(chromium, "#pool-status"), "the page to notice", 60)
        assert shown_at(chromium) >= at


@pytest.mark.parametrize("width", [1280, 768, 390, 360])
def test_it_fits(chromium: Chrome, width: int) -> None:
    resize(chromium, width, 900)
    eventually(lambda: bool(line(chromium)), "charts")
    script = "return [document.documentElement.scrollWidth, innerWidth]"
    assert chromium.execute_script(script) == [width, width]
    for card in chromium.find_elements(By.CSS_SELECTOR, ".pool-card"):
        assert card.rect["x"] >= 0
        assert card.rect["x"] + card.rect["width"] <= width


def test_each_table_has_a_name_can_be_scrolled_by_keyboard_and_has_no_empty_heading(
    chromium: Chrome,
) -> None:
    without = """
        return [...document.querySelectorAll("#pool-live table")].filter((table) =>
            !table.caption?.textContent.trim() || table.parentElement.tabIndex !== 0
            || [...table.querySelectorAll("th")].some((cell) => !cell.textContent.trim())
        ).length"""
    assert chromium.execute_script("return document.querySelectorAll('#pool-live table').length")
    assert chromium.execute_script(without) == 0


FOCUSED = """
    const style = getComputedStyle(document.activeElement);
    const { left, top } = document.activeElement.getBoundingClientRect();
    const outline = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
    return [document.activeElement.outerHTML.slice(0, 300), outline, left >= 0 && top >= 0];"""


def test_each_part_that_the_keyboard_reaches_shows_it(
    chromium: Chrome, shop: Site, module_server: Server
) -> None:
    resize(chromium, 360, 900)
    with slow_requests(shop, module_server, 6):
        eventually(lambda: state(chromium) == "exhausted", "the pool to be exhausted")
        chromium.find_element(By.ID, "pool-pause").click()
        seen: dict[str, list[bool]] = {}
        for _ in range(60):
            ActionChains(chromium).send_keys(Keys.TAB).perform()
            html, *shown = chromium.execute_script(FOCUSED)
            if html in seen or html.startswith("<body"):
                break
            seen[html] = shown
    assert {"<a ", "<sv", "<di", "<su"} <= {html[:3] for html in seen}
    assert [html for html, shown in seen.items() if not all(shown)] == []


def test_a_screen_reader_is_told_what_is_wrong_and_only_once(
    chromium: Chrome, shop: Site, module_server: Server
) -> None:
    region = chromium.find_element(By.ID, "pool-now")
    assert region.get_attribute("role") == "status"
    watch = """
        window.said = [];
        new MutationObserver(() => said.push(arguments[0].innerText))
            .observe(arguments[0], { childList: true, subtree: true, characterData: true });"""
    chromium.execute_script(watch, region)
    at = shown_at(chromium)
    eventually(lambda: shown_at(chromium) != at, "a refresh")
    assert chromium.execute_script("return said") == []
    with slow_requests(shop, module_server, 6):
        eventually(lambda: "slow statements" in text(chromium, "#pool-now"), "the page to say it")
        eventually(lambda: "default: slow statements" in chromium.title, "the title to say it")


CONTRASTS = """
    const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    const style = getComputedStyle(document.documentElement);
    const probe = document.createElement("i");
    document.body.append(probe);
    const luminance = (name) => {
        probe.style.color = `var(--pool-${name})`;
        const parts = getComputedStyle(probe).color.match(/[0-9.]+/g);
        const [r, g, b] = parts.map((part) => linear(part / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (one, other) => {
        const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const found = arguments[0].map(([one, other]) => contrast(one, other));
    probe.remove();
    return found;"""
NEIGHBOURS = (
    ("in-use", "track"), ("idle", "track"), ("opening", "track"), ("in-use", "idle"),
    ("over", "over-track"), ("over-idle", "over-track"), ("over", "over-idle"),
    ("idle", "over-track"), ("line", "ground"),
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_a_gauge_shows_has_a_contrast_of_3(chromium: Chrome, scheme: str) -> None:
    prefer(chromium, scheme)
    found = chromium.execute_script(CONTRASTS, NEIGHBOURS)
    assert dict(zip(NEIGHBOURS, found, strict=True)) == {
        pair: pytest.approx(ratio)
        for pair, ratio in zip(NEIGHBOURS, found, strict=True)
        if ratio >= 3
    }


def colours(chromium: Chrome) -> list[str]:
    """Of a card, of its heading, of the gauge."""
    script = """
        const colour = (selector, name) =>
            getComputedStyle(document.querySelector(selector)).getPropertyValue(name);
        return [
            colour(".pool-card", "background-color"),
            colour(".pool-card h2", "color"),
            colour(".pool-gauge .track", "fill"),
        ];"""
    return list(chromium.execute_script(script))


def test_it_is_light_or_dark_as_the_admin_is(chromium: Chrome) -> None:
    light = colours(chromium)
    prefer(chromium, "dark")
    dark = colours(chromium)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    # The admin's own switch wins over the system's preference.
    chromium.execute_script("document.documentElement.dataset.theme = 'light'")
    assert colours(chromium) == light
    chromium.execute_script("document.documentElement.dataset.theme = 'dark'")
    prefer(chromium, "light")
    assert colours(chromium) == dark


def test_a_finding_leads_to_its_place_in_the_docs(chromium: Chrome) -> None:
    chromium.find_element(By.LINK_TEXT, "abs_orm_app.W001").click()
    assert chromium.current_url.endswith(f"{PAGE}guide/W001/")
    assert "nothing reads this variable" in chromium.title
    assert complaints(chromium) == []
