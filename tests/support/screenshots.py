"""Photograph the live page for the docs: `python -m tests.support.screenshots DIRECTORY [MINUTES]`.

Three web servers under load for some minutes, two of them on one machine, on a PostgreSQL with a
forgotten transaction. Needs chromium, chromedriver and pngquant.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
from selenium.webdriver import Chrome

from abs_project.demo import PAGE, waves
from tests.support.browsers import STAFF, Site, browser, prefer, prepare, resize, site
from tests.support.pools import Call
from tests.support.processes import DEADLINE
from tests.support.servers import Server

SIZES = {
    "page-light.png": (1180, "light"),
    "page-dark.png": (1180, "dark"),
    "page-phone.png": (390, "light"),
}
LARGEST = 150_000  # bytes
POOL = {
    "DB_POOL_SIZE": "8",
    "DB_MAX_OVERFLOW": "4",
    "DB_POOL_LEAK_SECONDS": "10",
    "DB_POOL_PROCESSES": "6",
}
# The name of the settings' package is that of the application; the host's belongs to the machine.
SETTINGS = """
import os, socket
socket.gethostname = lambda: os.environ["HOST_NAME"]
from tests.support.watched.settings import *
TIME_ZONE = "UTC"
"""


def main() -> None:
    directory = Path(sys.argv[1])
    minutes = float(sys.argv[2]) if len(sys.argv) > 2 else 5.2
    with ExitStack() as stack:
        server = stack.enter_context(Server({"max_connections": "60"}))
        prepare(server)
        _make_shop(server)
        machine = stack.enter_context(tempfile.TemporaryDirectory())
        neighbours = {"TMPDIR": machine}
        shops = [
            stack.enter_context(_shop(server, host, environ))
            for host, environ in (("web-1", neighbours), ("web-1", neighbours), ("web-2", {}))
        ]
        stack.enter_context(_forgotten_transaction(server))
        for shop in shops:
            threading.Thread(target=_visit, args=(shop,), daemon=True).start()
        chromium = stack.enter_context(browser())
        shops[0].log_in(chromium, STAFF)
        time.sleep(minutes * 60)
        for name, (width, scheme) in SIZES.items():
            _photograph(shops[0], chromium, directory / name, width, scheme)


def _make_shop(server: Server) -> None:
    """A database and a role with a name, as a project has them."""
    with server.admin() as admin:
        admin.execute("create role shop login in role pg_monitor")
        admin.execute("create database shop template postgres")
    with server.admin("shop") as admin:
        admin.execute("grant all on all tables in schema public to shop")
        admin.execute("create table stock ()")
        admin.execute("grant all on stock to shop")


def _url(server: Server) -> str:
    return f"postgresql://shop@127.0.0.1:{server.port}/shop"


@contextmanager
def _shop(server: Server, host: str, more: Mapping[str, str]) -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory) / "shop"
        package.mkdir()
        (package / "settings.py").write_text(SETTINGS)
        environ = {
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "PYTHONPATH": directory,
            "DATABASE_URL": _url(server),
            "HOST_NAME": host,
            "SECRET_KEY": "x" * 60,
            "REFRESH": "5",
        }
        with site(server, **POOL, **environ, **more) as shop:
            yield shop


@contextmanager
def _forgotten_transaction(server: Server) -> Iterator[None]:
    """One who went to lunch with a lock, and one who waits for it."""
    with ExitStack() as stack:
        reports, importer = (
            stack.enter_context(psycopg.connect(_url(server), application_name=name))
            for name in ("reports@jobs-1:77", "import@jobs-1:4242")
        )
        reports.execute("lock table stock")
        threading.Thread(target=_wait_for_lock, args=(importer,), daemon=True).start()
        yield
        reports.rollback()


def _wait_for_lock(importer: psycopg.Connection) -> None:
    importer.execute("lock table stock")


def _visit(shop: Site) -> None:
    """Customers, until the web server has ended."""
    for wave in waves():
        if shop.web.program.ended():
            return
        with suppress(OSError, TimeoutError):
            shop.web.get(wave)
        time.sleep(random.uniform(0.0, 0.15))  # noqa: S311


def _photograph(shop: Site, chromium: Chrome, path: Path, width: int, scheme: str) -> None:
    """The whole page, with ten slow requests under way."""
    slow = Call(shop.web.get, ["/slow/?ms=6000"] * 10)
    time.sleep(3)
    prefer(chromium, scheme)
    resize(chromium, width, 800)
    chromium.get(f"{shop.url}{PAGE}")
    bottom = "return document.querySelector('#pool-live').getBoundingClientRect().bottom"
    resize(chromium, width, round(chromium.execute_script(bottom)) + 20)
    path.write_bytes(_smaller(chromium.get_screenshot_as_png()))
    assert path.stat().st_size < LARGEST, f"{path} is too large"
    slow.result(DEADLINE)


def _smaller(png: bytes) -> bytes:
    ran = subprocess.run(
        ["pngquant", "64", "-"], input=png, capture_output=True, check=True, timeout=DEADLINE
    )
    return ran.stdout


if __name__ == "__main__":
    main()
