"""The suite's own PostgreSQL, and the fixtures that give a test another one.

Each test process starts a PostgreSQL for Django's DATABASES. It has no pool (`DB_POOL_MODE=null`
opens a new connection each time), so a test leaves no connection behind. Tests of the pool ask for
a server:

    pytestmark = pytest.mark.server({"max_connections": "50"}, roles=["app LOGIN"])

    def test_something(shared: Server) -> None: ...  # one for the module, no sessions on it
    def test_a_fault(server: Server) -> None: ...  # the test's own, to stop, kill, suspend

The mark takes the arguments of `Server` (tests/support/servers.py): settings, hba, roles, sql.
A module without the mark gets PostgreSQL's defaults; on a test, the mark is for its `server`.
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
from hypothesis import HealthCheck, settings
from pytest_django.plugin import DjangoDbBlocker

from tests.support.servers import Server, scratch, wait_until
from tests.support.system import missing

# A process that a shell starts in the background, as a CI may, ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
# pytest-django imports the settings after this file, so their variables are set here.
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
# Other test processes are no neighbours, and none is waited for.
from abs_orm_app.integrations.admin_page import neighbours  # noqa: E402 - needs the settings

vars(neighbours).update(gettempdir=lambda: str(_server.socket_dir), TOLD_WITHIN=0.0)
# On a busy machine, examples take long to generate and to run.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_unconfigure() -> None:
    _server.__exit__(None, None, None)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "server: arguments of the Server to start; see conftest.py")
    config.addinivalue_line("markers", "needs: packages of the system; see tests/support/system.py")
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        # A process of pytest-xdist would inherit it, import the settings before this file, and so
        # use the database of this process, together with all the others.
        del os.environ["DJANGO_SETTINGS_MODULE"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if packages := missing(item):
        pytest.skip(f"not on this machine: apt install {' '.join(packages)}")


def _server_for(node: pytest.Item | pytest.Collector) -> Server:
    mark = node.get_closest_marker("server")
    return Server(*mark.args, **mark.kwargs) if mark else Server()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A PostgreSQL of the test's own, to do anything to."""
    with _server_for(request.node) as own:
        yield own


@pytest.fixture(scope="module")
def module_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server behind `shared`, for fixtures that live as long as the module."""
    with _server_for(request.node) as shared:
        yield shared


@pytest.fixture
def shared(module_server: Server) -> Server:
    """A PostgreSQL for all tests of the module; each begins with nobody else's session on it.

    A session outlives its client for a moment, longer on a busy machine. What another test left
    open, a failed one above all, is ended here.
    """
    wait_until(lambda: module_server.terminate() == 0, "the sessions of other tests to end")
    return module_server


@pytest.fixture
def unblocked(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Let Django's wrappers connect: pytest-django blocks them outside of its own fixtures."""
    with django_db_blocker.unblock():
        yield


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory for embedded servers, which are killed at the end of the test.

    Every account can reach it. Only root can reach `tmp_path` when root runs the tests.
    """
    path = Path(tempfile.mkdtemp(dir=scratch())).resolve()
    path.chmod(0o755)
    yield path
    for process in psutil.process_iter(["name", "cwd"]):
        if process.info["name"] == "postgres" and (process.info["cwd"] or "").startswith(str(path)):
            process.kill()
    shutil.rmtree(path)
