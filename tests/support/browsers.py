"""Debian's chromium, and a web server that it can reach, with users to log in as.

with site(server) as site, browser() as chromium:
    site.log_in(chromium, STAFF)
    chromium.get(f"{site.url}{PAGE}")
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.core.management import call_command
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.wait import WebDriverWait

from abs_project.demo import PAGE
from tests.support.processes import DEADLINE, GUNICORN, Web, run, web_server
from tests.support.servers import Server
from tests.support.system import needs

STAFF, CUSTOMER = "staff", "customer"  # each is its own password
CHROMIUM, DRIVER = "chromium", "chromedriver"
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

needs_browser = needs(
    "chromium chromium-driver", found=shutil.which(CHROMIUM) and shutil.which(DRIVER)
)


@contextmanager
def browser(width: int = 1280, height: int = 1000, *, javascript: bool = True) -> Iterator[Chrome]:
    with tempfile.TemporaryDirectory(prefix="abs_orm_app-", ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        for switch in (*SWITCHES, f"--user-data-dir={profile}"):
            options.add_argument(switch)
        if not javascript:
            blocked = {"profile.managed_default_content_settings.javascript": 2}
            options.add_experimental_option("prefs", blocked)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        chromium = Chrome(options=options, service=ChromeService(shutil.which(DRIVER) or DRIVER))
        try:
            chromium.set_page_load_timeout(DEADLINE)
            resize(chromium, width, height)
            yield chromium
        finally:
            chromium.quit()


def resize(chromium: Chrome, width: int, height: int) -> None:
    """Set the size of the page; a window cannot be as narrow as a phone."""
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def prefer(chromium: Chrome, scheme: str) -> None:
    """Be a system that prefers "light" or "dark"."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


@dataclass(frozen=True)
class Site:
    """A web server with the watched project, on a TCP port."""

    web: Web
    url: str

    def log_in(self, chromium: Chrome, user: str) -> None:
        chromium.get(f"{self.url}/admin/login/?next={PAGE}")
        for field in ("username", "password"):
            chromium.find_element(By.NAME, field).send_keys(user)
        submit = chromium.find_element(By.CSS_SELECTOR, "[type=submit]")
        submit.click()
        WebDriverWait(chromium, DEADLINE).until(staleness_of(submit), "the next page")


def make_users() -> None:
    """In a process of its own: the tables, and who may log in."""
    from django.contrib.auth.models import User

    call_command("migrate", verbosity=0)
    User.objects.create_superuser(STAFF, password=STAFF)
    User.objects.create_user(CUSTOMER, password=CUSTOMER)


@contextmanager
def site(server: Server, *options: str, **environ: str) -> Iterator[Site]:
    """Start gunicorn on a server where `make_users` has been run."""
    defaults = {"DJANGO_SETTINGS_MODULE": "tests.support.watched.settings", "DEBUG": "true"}
    with web_server(
        GUNICORN,
        server,
        "--worker-class=gthread",
        "--threads=16",
        "--bind=127.0.0.1:0",
        *options,
        **(defaults | environ),
    ) as web:
        found = re.search(r"http://127\.0\.0\.1:\d+", web.program.errors)
        assert found, web.program.errors
        yield Site(web, found[0])


def prepare(server: Server) -> None:
    result = run(server, make_users, DJANGO_SETTINGS_MODULE="tests.support.watched.settings")
    assert result.status == 0, result.errors
