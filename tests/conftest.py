"""The suite's own PostgreSQL, and no pool: `DB_POOL_MODE=null` opens a fresh connection each time.

So the tests of several developers, and of several processes, neither meet on one server nor
exhaust it. A test of the pool opts in, with a server of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import django
import psutil
import pytest
from pytest_django.plugin import DjangoDbBlocker

from tests.support.servers import Server, scratch

# Ctrl-C is ignored by what a shell has started in the background, as a CI may.
signal.signal(signal.SIGINT, signal.default_int_handler)
# pytest-django reads the settings after this file: what they depend on is set here.
_server = Server().__enter__()
for name in [name for name in os.environ if name.startswith(("DB_", "DATABASE_URL"))]:
    del os.environ[name]
os.environ |= {
    "DJANGO_SETTINGS_MODULE": "abs_project.settings",
    "DATABASE_URL": _server.url,
    "DB_POOL_MODE": "null",
    "ENV_FILE": os.devnull,
}
django.setup()


def pytest_unconfigure() -> None:
    _server.__exit__(None, None, None)


@pytest.fixture
def server() -> Iterator[Server]:
    """A PostgreSQL of the test's own, to do anything to."""
    with Server() as own:
        yield own


@pytest.fixture
def unblocked(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Let Django's wrappers connect, as to a server of the test's own."""
    with django_db_blocker.unblock():
        yield


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory for embedded servers, which every account can reach, and that none survives.

    `tmp_path` will not do: when root runs the tests, only root can reach it.
    """
    path = Path(tempfile.mkdtemp(dir=scratch())).resolve()
    path.chmod(0o755)
    yield path
    for process in psutil.process_iter(["name", "cwd"]):
        if process.info["name"] == "postgres" and (process.info["cwd"] or "").startswith(str(path)):
            process.kill()
    shutil.rmtree(path)
