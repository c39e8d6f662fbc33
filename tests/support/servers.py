"""Throw-away PostgreSQL servers that a test may restart, kill, suspend and reconfigure.

    with Server({"max_connections": "20"}, roles=["app LOGIN"]) as server:
        with server.admin() as admin:
            admin.execute("select 1")
        server.kill()
        server.start()

A server starts in about 0.1 s, because it is a copy of a cluster that initdb makes once per
process. Most tests need no `Server(...)` of their own: tests/conftest.py has fixtures.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal, Self

import psutil
import psycopg
from psycopg.rows import TupleRow

from abs_orm_app.embedded.cluster import processes_of, running
from abs_orm_app.embedded.wheel import MAJOR, Programs, programs, server_account
from tests.support.ports import reserved_port

PREFIX = "abs_orm_app-test-"
MEMORY = 2 * 2**30  # bytes that must be free in /dev/shm to keep clusters there; one takes 40 MB
OTHER = Path(os.environ["TEST_POSTGRESQL"]) if "TEST_POSTGRESQL" in os.environ else None
DEADLINE = 20.0  # seconds, for every wait on a server
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# pg_hba.conf: everybody is trusted on the Unix socket, only `postgres` on the TCP port.
PASSWORD_OVER_TCP = """
local all all trust
host all postgres all trust
host all all all scram-sha-256
"""
# Everybody is trusted on both; initdb, as the embedded server calls it, rejects TCP.
TRUST = """
local all,replication all trust
host all,replication all all trust
"""
# One connection for roles that are not superusers.
ONE_CONNECTION = {"max_connections": "6", "superuser_reserved_connections": "5"}
# Without durability: a crash of the machine ends the test as well.
FAST = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB"}
FAST |= {"dynamic_shared_memory_type": "mmap"}  # removed with the directory


class Server:
    """A PostgreSQL on a Unix socket and on a TCP port of 127.0.0.1; superuser `postgres`.

    settings: parameters of postgresql.conf, used at each start.
    hba: the lines of pg_hba.conf, such as PASSWORD_OVER_TCP; the default trusts everybody.
    roles: roles to create, as CREATE ROLE takes them: `app LOGIN CONNECTION LIMIT 3`.
    sql: more statements to run in the database `postgres` after the first start.

    It has no TLS, because the wheel is built without it.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        hba: str = TRUST,
        roles: Sequence[str] = (),
        sql: Sequence[str] = (),
    ) -> None:
        self.settings = dict(settings or {})
        self.port = 0
        self._hba = hba
        self._sql = [*(f"CREATE ROLE {role}" for role in roles), *sql]
        self._programs = _programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            self.socket_dir = _new_directory()
            cleanup.callback(_remove, self.socket_dir)
            self.data = self.socket_dir / "data"
            self._make_cluster()
            self._write_hba(self._hba)
            self.port = cleanup.enter_context(reserved_port())
            cleanup.callback(self._end)
            self.start()
            if self._sql:
                with self.admin() as admin:
                    for statement in self._sql:
                        admin.execute(statement)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    # Addresses

    @property
    def programs_dir(self) -> Path:
        """Where psql, pg_dump and pg_restore of this release are."""
        return self._programs.bin

    @property
    def conninfo(self) -> str:
        """libpq connection string for the Unix socket."""
        return f"host={self.socket_dir} port={self.port} user=postgres dbname=postgres"

    @property
    def tcp_conninfo(self) -> str:
        """libpq connection string for the TCP port."""
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    @property
    def url(self) -> str:
        """DATABASE_URL for the Unix socket."""
        host = str(self.socket_dir).replace("/", "%2F")
        return f"postgresql://postgres@{host}:{self.port}/postgres"

    @property
    def tcp_url(self) -> str:
        """DATABASE_URL for the TCP port."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def log(self) -> str:
        return (self.socket_dir / "log").read_text()

    @property
    def pid(self) -> int:
        """Process id of the postmaster; its children are the backends."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    # Faults

    def start(self) -> None:
        """Start with `settings` and return when the server is ready."""
        assert self._process is None, "the server is running"
        options = FAST | {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
        }
        with (self.socket_dir / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs.bin / "postgres",
                    f"-D{self.data}",
                    *(f"--{name}={value}" for name, value in (options | self.settings).items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # so that Ctrl-C ends only the tests
                **self._programs.process,
            )
        try:
            wait_until(self._is_up, "the server to be ready")
        except BaseException:
            self._end()
            raise

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop, and return when no process is left.

        `fast` ends every session with a message, `immediate` drops them, `smart` waits for them.
        """
        os.kill(self.pid, SIGNALS[mode])
        self._wait_for_the_end()

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop and start, on the same port and socket."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Crash: SIGKILL to the postmaster and all backends, suspended or not."""
        backends = self._signal(signal.SIGKILL)[1:]
        self._wait_for_the_end()
        wait_until(lambda: not any(map(_lives, backends)), "the backends to die")

    def suspend(self) -> None:
        """Freeze the server: the kernel still accepts connections, but nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `suspend` and `suspend_backend`."""
        self._signal(signal.SIGCONT)

    @contextmanager
    def suspended(self) -> Iterator[None]:
        self.suspend()
        try:
            yield
        finally:
            self.resume()

    def suspend_backend(self, pid: int) -> None:
        """Freeze the server process of one session, see `pg_backend_pid()`."""
        assert pid in [process.pid for process in _family(self.pid)], f"no process {pid} here"
        os.kill(pid, signal.SIGSTOP)

    def reload(self, hba: str | None = None) -> None:
        """Reload the configuration, with new lines in pg_hba.conf if given."""
        if hba is not None:
            self._write_hba(hba)
        with self.admin() as admin:
            admin.execute("select pg_reload_conf()")

    # Sessions

    @contextmanager
    def admin(self, dbname: str = "postgres") -> Iterator[psycopg.Connection[TupleRow]]:
        """A superuser's session in autocommit mode, with application_name `admin`.

        It waits for a free connection, and returns when its own is free again.
        """
        with self._connect_admin(dbname) as connection:
            backend = connection.info.backend_pid
            yield connection
        wait_until(lambda: not psutil.pid_exists(backend), "the end of the admin's session")

    def _connect_admin(self, dbname: str) -> psycopg.Connection[TupleRow]:
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                return psycopg.connect(
                    self.conninfo,
                    autocommit=True,
                    dbname=dbname,
                    application_name="admin",
                    connect_timeout=int(DEADLINE),
                )
            except psycopg.OperationalError as error:
                # Sessions of clients that have gone may still occupy all connections.
                if "too many clients" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def sessions(self, application_name: str | None = None) -> int:
        """The number of client sessions: those of one application_name, or all except `admin`."""
        return self._count("select count(*)", application_name)

    def terminate(self, application_name: str | None = None) -> int:
        """Terminate the sessions that `sessions` counts; returns their number."""
        return self._count("select count(pg_terminate_backend(pid, 5000))", application_name)

    def cancel(self) -> int:
        """Cancel the running query of each session that `sessions` counts; returns their number."""
        return self._count("select count(*) filter (where pg_cancel_backend(pid))", None, "active")

    def _count(self, select: str, application_name: str | None, state: str | None = None) -> int:
        with self.admin() as admin:
            row = admin.execute(
                f"{select} from pg_stat_activity where backend_type = 'client backend'"
                " and application_name = coalesce(%(name)s, application_name)"
                " and pid <> pg_backend_pid()"
                " and (%(name)s::text is not null or application_name <> 'admin')"
                " and state is not distinct from coalesce(%(state)s, state)",
                {"name": application_name, "state": state},
            ).fetchone()
        assert row is not None
        return int(row[0])

    # Inside

    def _make_cluster(self) -> None:
        copy_cluster(self.data)

    def _signal(self, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal to the postmaster, then to the backends, and return them all."""
        # A postmaster that has stopped first cannot start more backends.
        os.kill(self.pid, signal.SIGSTOP)
        family = _family(self.pid)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return family

    def _wait_for_the_end(self) -> None:
        assert self._process is not None
        self._process.wait(DEADLINE)
        self._process = None

    def _write_hba(self, lines: str) -> None:
        (self.data / "pg_hba.conf").write_text(lines)

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the server did not start:\n{self.log[-2000:]}")
        return running(self.data) is not None

    def _end(self) -> None:
        """Kill the server if it is running."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self.kill()
        self._process = None


def wait_until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    """Return when the condition holds; raise TimeoutError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.1f} s for {what}")
        time.sleep(0.005)


@functools.cache
def _programs() -> Programs:
    """PostgreSQL 18 from the wheel, or another release: TEST_POSTGRESQL names its directory."""
    if OTHER is None:
        return programs()
    return Programs(bin=OTHER / "bin", account=server_account())


@functools.cache
def major() -> int:
    """The release of the servers here: 18, or that of TEST_POSTGRESQL."""
    if OTHER is None:
        return int(MAJOR)
    printed = subprocess.check_output([OTHER / "bin" / "postgres", "--version"], text=True)
    return int(printed.split()[2].partition(".")[0])


@functools.cache
def _template() -> Path:
    """A directory with a new cluster in `data`, for this process to copy."""
    _sweep()
    directory = _new_directory()
    if OTHER is None:
        _programs().initdb(directory / "data")
    else:  # PostgreSQL 16 and older have no builtin locales
        arguments = ("--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8")
        _programs().run("initdb", "--pgdata=data", *arguments, "--locale=C", cwd=directory)
    atexit.register(_remove_if_mine, directory, os.getpid())
    return directory


def copy_cluster(data: Path) -> None:
    """Copy the template, which takes a tenth of the time of initdb."""
    subprocess.run(["cp", "-a", _template() / "data", data], check=True)


def _remove_if_mine(directory: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a fork
        shutil.rmtree(directory)


@functools.cache
def scratch() -> Path:
    """The directory for clusters: in memory if there is enough.

    On ext4, the thousand files of a new cluster take a second after thousands were removed.
    """
    memory = Path("/dev/shm")  # noqa: S108
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > MEMORY:
        return memory
    return Path(tempfile.gettempdir())


def _new_directory() -> Path:
    """A new directory for the server's account, with the pid of this process for `_sweep`."""
    return _programs().own(Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=scratch())))


def _sweep() -> None:
    """Remove the directories of test processes that were killed."""
    for directory in scratch().glob(f"{PREFIX}*-*"):
        owner = int(directory.name.removeprefix(PREFIX).partition("-")[0])
        if psutil.pid_exists(owner):
            continue
        for pid in processes_of(directory / "data"):
            with suppress(ProcessLookupError):  # another test process sweeps as well
                os.kill(pid, signal.SIGKILL)
        if running(directory / "data"):
            continue  # another container shares the directory and has other pids
        with suppress(OSError):  # another user's
            _remove(directory)


def _family(postmaster: int) -> list[psutil.Process]:
    """A postmaster, and its backends."""
    process = psutil.Process(postmaster)
    return [process, *process.children()]


def _lives(process: psutil.Process) -> bool:
    # An orphan stays a zombie until init reaps it.
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _remove(directory: Path) -> None:
    """Remove a server's directory, and the shared memory that a killed server leaves behind."""
    with suppress(FileNotFoundError):
        lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
        if len(lines) > 6 and lines[6]:
            subprocess.run(["ipcrm", "-m", lines[6].split()[1]], check=False, capture_output=True)
    shutil.rmtree(directory)
