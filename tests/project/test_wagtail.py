"""A site made by `wagtail start` with README's settings, and a restart of its database.

`make wagtail` installs Wagtail into an environment of its own, runs this, and prints the result.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from itertools import cycle
from pathlib import Path
from threading import Thread

import pytest

from tests.support.ports import reserved_port
from tests.support.processes import DEADLINE, Program, Watch, program
from tests.support.readme import ROOT, embed, run
from tests.support.servers import Server, wait_until
from tests.support.system import IN_CI

ENVIRONMENT = ROOT / ".venv-wagtail"
PYTHON = ENVIRONMENT / "bin" / "python"
POOL = {"DB_POOL_SIZE": "4", "DB_MAX_OVERFLOW": "2"}
LIMIT = 6  # connections of one process
PEOPLE = 24
SECONDS = 2.0  # of load, before and after the outage
OUTAGE = 1.0  # seconds

GUNICORN = (
    *("gunicorn", "--preload", "--workers=2", "--threads=12", "--log-level=warning"),
    *("--chdir={site}", "--bind=localhost:{port}", "shop.wsgi"),
)
UVICORN = (
    *("uvicorn", "--log-level=warning", "--app-dir={site}"),
    *("--host=localhost", "--port={port}", "shop.asgi:application"),
)

VISITORS_PAGES = ("/", "/search/?query=welcome", "/admin/login/", "/django-admin/login/")
EDITORS_PAGES = ("/", "/admin/", "/admin/pages/", "/admin/users/", "/admin/reports/site-history/")
# Without DEBUG, an error is an error page and no explanation by Django.
LOCAL = "DEBUG = False\nALLOWED_HOSTS = ['localhost']\n"
ASGI = "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()\n"
LOG_IN = """
from django.contrib.auth import get_user_model
from django.test import Client
client = Client()
client.force_login(get_user_model().objects.create_superuser("editor"))
print("session", client.cookies["sessionid"].value)
"""


@dataclass(frozen=True)
class Site:
    """A site, and the session of an editor who is logged in."""

    directory: Path
    session: str
    version: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, module_server: Server) -> Site:
    if not PYTHON.exists():
        assert not IN_CI, "Wagtail is not installed: make wagtail"
        pytest.skip("Wagtail is not installed: make wagtail")
    directory = tmp_path_factory.mktemp("site")
    run(ENVIRONMENT / "bin" / "wagtail", "start", "shop", directory, cwd=directory)
    embed(directory / "shop" / "settings" / "base.py")
    (directory / "shop" / "settings" / "local.py").write_text(LOCAL)
    (directory / "shop" / "asgi.py").write_text(ASGI)
    environ = {"DATABASE_URL": module_server.url, **POOL}
    run(PYTHON, "manage.py", "migrate", cwd=directory, **environ)
    printed = run(PYTHON, "manage.py", "shell", "-c", LOG_IN, cwd=directory, **environ)
    version = run(PYTHON, "-c", "import wagtail; print(wagtail.__version__)", cwd=directory)
    return Site(directory, printed.split()[-1], version.strip())


@dataclass(frozen=True)
class Answer:
    path: str
    status: int  # 0 if there was no answer
    began: float  # time.monotonic()


def load(port: int, path: str, session: str = "") -> Answer:
    """Load a page from the web server on this port, with a session or without."""
    began, status = time.monotonic(), 0
    browser = HTTPConnection("localhost", port, timeout=DEADLINE)
    with suppress(OSError, HTTPException):
        browser.request("GET", path, headers={"Cookie": f"sessionid={session}"})
        response = browser.getresponse()
        response.read()
        status = response.status
    browser.close()
    return Answer(path, status, began)


@contextmanager
def people(port: int, session: str) -> Iterator[list[Answer]]:
    """Let visitors and editors load page after page; yields the answers so far."""
    answers: list[Answer] = []
    end = threading.Event()

    def read(pages: Sequence[str], session: str) -> None:
        for page in cycle(pages):
            if end.is_set():
                return
            answers.append(load(port, page, session))

    kinds = ((VISITORS_PAGES, ""), (EDITORS_PAGES, session))
    threads = [Thread(target=read, args=kind, daemon=True) for kind in kinds * (PEOPLE // 2)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        end.set()
        for thread in threads:
            thread.join(DEADLINE)


def accepts(running: Program, port: int) -> bool:
    assert not running.ended(), f"the web server did not start:\n{running.errors}"
    return load(port, VISITORS_PAGES[0]).status == 200


@pytest.fixture
def port() -> Iterator[int]:
    """A TCP port for the web server: without a port, Wagtail finds no site under uvicorn."""
    with reserved_port() as port:
        yield port


@pytest.mark.parametrize(
    ("command", "processes"), [(GUNICORN, 2), (UVICORN, 1)], ids=["gunicorn --preload", "uvicorn"]
)
def test_a_wagtail_site_survives_a_restart_of_its_database(
    site: Site,
    shared: Server,
    port: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    command: Sequence[str],
    processes: int,
) -> None:
    module, *rest = (part.format(site=site.directory, port=port) for part in command)
    environ = {**POOL, "DJANGO_SETTINGS_MODULE": "shop.settings.dev"}
    environ["XDG_RUNTIME_DIR"] = f"{tmp_path}"  # of gunicorn's control socket
    with program([str(PYTHON), "-m", module, *rest], shared, **environ) as running:
        wait_until(lambda: accepts(running, port), "the web server to answer", DEADLINE)
        with people(port, site.session) as answers:
            with Watch(shared) as before:
                time.sleep(SECONDS)
            shared.stop()
            stopped = time.monotonic()
            time.sleep(OUTAGE)
            shared.start()
            with Watch(shared) as after:
                time.sleep(SECONDS)
        log = running.errors
    failed = [answer for answer in answers if answer.status != 200]
    late = [answer for answer in failed if answer.began > stopped]
    assert not late, f"{late}\n{log[-3000:]}"
    assert len(failed) <= processes * LIMIT, failed  # at most those that held a connection
    most = max(before.most, after.most)
    assert most <= processes * LIMIT
    sys.stdout.write(
        f"Wagtail {site.version} under {request.node.callspec.id}: {len(answers)} pages,"
        f" {len(failed)} failed as the database stopped, {len(late)} after that;"
        f" at most {most} connections, the limit is {processes * LIMIT}\n"
    )
