"""Real processes that use the pool: a function in a new interpreter, or a web server.

    result = run(server, my_function, DB_POOL_SIZE="3")
    assert (result.status, result.errors) == (0, "")

    with web_server(GUNICORN, server) as web:
        answers = web.get(["/slow/?ms=20"] * 200)

`run` starts `python -m tests.support.processes MODULE FUNCTION`. Every process ends with its block.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.db import connection

from tests.support.servers import Server, wait_until

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0  # seconds, for every wait on a process


@dataclass(frozen=True)
class Result:
    """How a process ended."""

    status: int  # exit status; -15 if SIGTERM killed it
    output: str
    errors: str  # its stderr
    ended_at: float  # time.monotonic(), which all processes share


class Program:
    """A running process with its output in files, in a session (setsid) of its own."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], directory: Path) -> None:
        self._output, self._errors = directory / "output", directory / "errors"
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                cwd=ROOT,
                env=dict(environ),
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Result:
        """Send a signal, and wait for the process to end."""
        self._process.send_signal(number)
        return self.wait()

    def wait(self, seconds: float = DEADLINE) -> Result:
        """Wait for the process to end; fail with its output if it is still running."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self.output}\n{self.errors}") from None
        return Result(status, self.output, self.errors, time.monotonic())

    def kill(self) -> None:
        """Kill the process and its children, if they are still running."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def program(command: Sequence[str], server: Server, **environ: str) -> Iterator[Program]:
    """Start a process in mode `pool` on `server`; `environ` is added to its environment."""
    names = {name: text for name, text in os.environ.items() if not name.startswith("DB_")}
    names |= {"DATABASE_URL": server.url, "DB_POOL_MODE": "pool", "DEBUG": "false"} | environ
    with tempfile.TemporaryDirectory(prefix="abs_orm_app-") as directory:
        running = Program(command, names, Path(directory))
        try:
            yield running
        finally:
            running.kill()


@contextmanager
def start(
    server: Server,
    function: Callable[..., None],
    *arguments: str,
    options: Sequence[str] = (),
    **environ: str,
) -> Iterator[Program]:
    """Start a function of a test module in a new Python with these options, after django.setup().

    The last line of the output is the time at which it returned, by `time.monotonic()`.
    TEST_ENGINE="django.db.backends.postgresql" selects Django's own pool.
    """
    name = (function.__module__, function.__qualname__)
    command = [sys.executable, *options, "-m", "tests.support.processes", *name, *arguments]
    with program(command, server, **environ) as running:
        yield running


def run(
    server: Server,
    function: Callable[..., None],
    *arguments: str,
    options: Sequence[str] = (),
    within: float = DEADLINE,
    **environ: str,
) -> Result:
    """Like `start`, and wait for the end, `within` seconds."""
    with start(server, function, *arguments, options=options, **environ) as running:
        return running.wait(within)


# Web servers

GUNICORN = ("gunicorn", "--bind=unix:{socket}", "abs_project.wsgi")
UVICORN = ("uvicorn", "--uds={socket}", "--log-level=warning", "abs_project.asgi:application")


@dataclass(frozen=True)
class Web:
    """A web server that runs the sample project."""

    program: Program
    socket: str

    def get(self, paths: Sequence[str]) -> list[str]:
        """Request all paths at the same time; return each answer's status line and body."""
        return asyncio.run(self._get(paths))

    async def _get(self, paths: Sequence[str]) -> list[str]:
        async with asyncio.timeout(DEADLINE):
            return await asyncio.gather(*(self._request(path) for path in paths))

    async def _request(self, path: str) -> str:
        reader, writer = await asyncio.open_unix_connection(self.socket)
        writer.write(_request(path))
        answer = (await reader.read()).decode()
        writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        return f"{head.splitlines()[0] if head else 'no answer'}\n{body}"

    def hang_up_on(self, paths: Sequence[str], after: float) -> None:
        """Request all paths, and close the connections after so many seconds."""
        asyncio.run(self._hang_up_on(paths, after))

    async def _hang_up_on(self, paths: Sequence[str], after: float) -> None:
        clients = [await asyncio.open_unix_connection(self.socket) for _ in paths]
        for path, (_, writer) in zip(paths, clients, strict=True):
            writer.write(_request(path))
        await asyncio.sleep(after)
        for _, writer in clients:
            writer.close()

    def accepts(self) -> bool:
        assert not self.program.ended(), f"the web server did not start:\n{self.program.errors}"
        with suppress(OSError):
            return self.get(["/"]) != []
        return False


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


@contextmanager
def web_server(
    command: Sequence[str], server: Server, *options: str, **environ: str
) -> Iterator[Web]:
    """Start GUNICORN or UVICORN with these options; yields when it answers."""
    with tempfile.TemporaryDirectory(prefix="abs_orm_app-") as directory:
        socket = f"{directory}/web"
        module, *rest = (part.format(socket=socket) for part in command)
        with program(
            [sys.executable, "-m", module, *options, *rest],
            server,
            # For gunicorn's control socket; and other tests' processes are no neighbours.
            **{"XDG_RUNTIME_DIR": directory, "TMPDIR": directory} | environ,
        ) as running:
            web = Web(running, socket)
            wait_until(web.accepts, "the web server to answer", DEADLINE)
            yield web


# Sessions on the server

# While it starts, a session has no name: it may be the tests' own.
OF_CLIENTS = """
    where backend_type = 'client backend' and application_name <> 'admin' and state <> 'starting'"""
SESSIONS = f"select state, count(*) from pg_stat_activity {OF_CLIENTS} group by state"


class Watch:
    """Counts a server's sessions every few milliseconds, in a thread.

    with Watch(server) as watch: ...
    assert watch.most <= 30
    """

    def __init__(self, server: Server) -> None:
        self.most = 0
        self.most_active = 0
        self._server = server
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(DEADLINE)

    def _look(self) -> None:
        with self._server.admin() as admin:
            while not self._end.wait(0.005):
                count = Counter(dict(admin.execute(SESSIONS).fetchall()))
                self.most = max(self.most, count.total())
                self.most_active = max(self.most_active, count["active"])


def states(server: Server) -> dict[str, int]:
    """The number of sessions in each state: `{"idle": 20}`."""
    with server.admin() as admin:
        return dict(admin.execute(SESSIONS).fetchall())


def backends(server: Server) -> set[int]:
    """The backend pids of the sessions."""
    with server.admin() as admin:
        rows: list[Any] = admin.execute(f"select pid from pg_stat_activity {OF_CLIENTS}").fetchall()
    return {row[0] for row in rows}


def backend() -> int:
    """The backend pid of this thread's default connection, for use in a process with Django."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        return int(cursor.fetchone()[0])


def _main(module: str, function: str, *arguments: str) -> None:
    if engine := os.environ.get("TEST_ENGINE"):
        settings.DATABASES["default"]["ENGINE"] = engine
    django.setup()
    try:
        getattr(import_module(module), function)(*arguments)
    finally:
        sys.stdout.write(f"{time.monotonic()}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
