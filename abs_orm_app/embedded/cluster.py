"""`embedded:///DIR`: a real PostgreSQL for a machine that has none, started at its first use.

It keeps running after the process that started it, so that the next command finds it, until
`python -m abs_orm_app.embedded stop DIR`. If its directory is removed, it stops within a minute.
"""

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from abs_orm_app.embedded import wheel

PORT = 5432  # only part of the socket's name: the server does not listen on TCP
SOCKET_PATH_MAX = 103  # bytes, on macOS; Linux allows 107
POLL_SECONDS = 0.02


def embedded_url(directory: Path) -> str:
    """Return the URL of the PostgreSQL in `directory`, which is set up and started if needed.

    Finding a running server takes less than a millisecond. Several processes may call this at the
    same time. Raises ImproperlyConfigured, with one sentence, if the server cannot run.
    """
    directory = directory.resolve()
    if re.search(r"[\r\n]", str(directory)):
        raise wheel.EmbeddedError(
            f"{str(directory)!r} holds a line break, which PostgreSQL cannot have in its files:"
            " name another directory with embedded:///DIR."
        )
    server = running(directory / "data")
    if server is None:
        with _one_sentence(directory):
            server = _start(directory)
    host = quote(str(server.socket_dir), safe="")
    return f"postgresql://postgres@{host}:{server.port}/postgres"


def stop(directory: Path) -> bool:
    """Stop the server in `directory`; return False if it was not running."""
    data = (directory / "data").resolve()
    if running(data) is None:
        return False
    with _one_sentence(directory):
        tools = wheel.programs(owner=data.stat().st_uid)
        tools.run("pg_ctl", "stop", "-m", "fast", "-D", ".", cwd=data)
    return True


@contextmanager
def _one_sentence(directory: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error.args[1] if isinstance(error, OSError) and error.errno else error
        raise wheel.EmbeddedError(
            f"The embedded PostgreSQL in {directory} cannot run: {reason}."
            " Set another directory with embedded:///DIR, or the URL of your own server."
        ) from error


@dataclass(frozen=True, kw_only=True)
class Postmaster:
    pid: int
    port: int
    socket_dir: Path
    ready: bool


def running(data: Path) -> Postmaster | None:
    """Return the server of the cluster in `data` if it is ours, ready, and accepts connections."""
    server = _postmaster(data)
    if server is None or not server.ready:
        return None
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.settimeout(1)
        probe.connect(f"{server.socket_dir}/.s.PGSQL.{server.port}")
        # The file may be from a killed server, while its successor listens but is not ready yet.
        return server if _postmaster(data) == server else None
    return None


def _postmaster(data: Path) -> Postmaster | None:
    """Read postmaster.pid; None if there is none, or it cannot be trusted.

    It is not trusted if it was copied or moved with the directory, or if another user wrote it: it
    could lead to that user's server. Root runs the server as the owner of the data, so root trusts
    that owner.
    """
    try:
        with (data / "postmaster.pid").open() as file:
            if os.fstat(file.fileno()).st_uid != (os.geteuid() or data.stat().st_uid):
                return None
            lines = file.read().splitlines()
        pid, home, _, port, socket_dir, *rest = lines
        if Path(home) != data.resolve():
            return None
        ready = len(rest) == 3 and rest[2].strip() == "ready"
        return Postmaster(pid=int(pid), port=int(port), socket_dir=Path(socket_dir), ready=ready)
    except (OSError, ValueError):
        return None


def _start(directory: Path) -> Postmaster:
    """Start the server in `directory`, unless another process is faster."""
    tools = wheel.programs(owner=_owner(directory))
    directory.mkdir(parents=True, exist_ok=True)
    if others := sorted({entry.name for entry in directory.iterdir()} - {"data", "data.new"}):
        raise wheel.EmbeddedError(
            f"{directory} holds other files ({others[0]}): "
            "the embedded PostgreSQL needs a new or an empty directory."
        )
    with _locked(tools.own(directory)) as lock:
        data = _cluster(directory, tools, lock)
        if server := _settled(data):
            return server
        log = data / "log"
        log.unlink(missing_ok=True)
        # Quoted for PostgreSQL's list of directories, and below for the shell.
        socket_dir = '"' + str(_socket_dir(data, tools)).replace('"', '""') + '"'
        flags = shlex.join(["-c", "listen_addresses=", "-p", str(PORT), "-k", socket_dir])
        try:
            tools.run("pg_ctl", "start", "-D", ".", "-l", log.name, "-o", flags, cwd=data)
        except RuntimeError as error:
            raise RuntimeError(_last_complaint(log) or str(error)) from error
        server = running(data)
    if server is None:
        raise RuntimeError(f"it stopped immediately, see {log}")
    return server


def _owner(directory: Path) -> int:
    with suppress(FileNotFoundError):
        return directory.stat().st_uid
    return _owner(directory.parent)


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Lock the directory; the kernel releases the lock when no process has it open."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        deadline = time.monotonic() + 2 * wheel.DEADLINE
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise RuntimeError("another process has been starting it for two minutes")
            time.sleep(POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def _cluster(directory: Path, tools: wheel.Programs, lock: int) -> Path:
    """Return the real path of the data directory; create it if it is missing."""
    link = directory / "data"
    if tools.account and not link.is_symlink() and not tools.can_run("/bin/ls", directory):
        home = wheel.root_state(_digest(directory))
        home.mkdir(exist_ok=True)
        link.symlink_to(tools.own(home) / "data")
    data = link.resolve()
    if not data.exists():
        new = data.with_name("data.new")  # its name until it is complete
        shutil.rmtree(new, ignore_errors=True)
        tools.initdb(new, lock)
        new.rename(data)
    made_by = (data / "PG_VERSION").read_text().strip()
    if made_by != wheel.MAJOR:
        raise wheel.EmbeddedError(
            f"PostgreSQL {made_by} created {directory}, but this is {wheel.MAJOR}: "
            "set another directory, or remove this one if you do not need its data."
        )
    return data


def _settled(data: Path) -> Postmaster | None:
    """Wait for a server that is starting or stopping; None: a new server can start in `data`."""
    deadline = time.monotonic() + wheel.DEADLINE
    while processes := processes_of(data):
        server = _postmaster(data)
        if server is None or server.pid not in processes:
            # Backends of a killed postmaster, or a server whose directory was moved or removed.
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif server := running(data):
            return server
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"process {processes[0]} has neither started nor stopped in {wheel.DEADLINE:.0f} s"
            )
        time.sleep(POLL_SECONDS)
    # PostgreSQL respects these files as long as their process exists. But the process may be a
    # zombie, or its id may belong to another program by now.
    for name in ("postmaster.pid", f".s.PGSQL.{PORT}.lock"):
        (data / name).unlink(missing_ok=True)
    return None


def processes_of(data: Path) -> list[int]:
    import psutil  # imported here because it is slow; it comes with the wheel

    return [
        process.pid
        for process in psutil.process_iter(["name", "cwd"])
        if process.info["name"] == "postgres" and process.info["cwd"] == str(data)
    ]


def _socket_dir(data: Path, tools: wheel.Programs) -> Path:
    """Return the socket's directory: the data directory, unless libpq cannot use its path."""
    path = bytes(data / f".s.PGSQL.{PORT}")
    if len(path) <= SOCKET_PATH_MAX and b"," not in path:  # a comma would separate hosts
        return data
    short = Path(tempfile.gettempdir(), f"abs_orm_app-{_digest(data)}")
    shutil.rmtree(short, ignore_errors=True)  # a killed server leaves its lock file there
    short.mkdir(mode=0o700)  # must fail if another user has created it
    return tools.own(short)


def _digest(path: Path) -> str:
    return hashlib.sha256(bytes(path)).hexdigest()[:16]


def _last_complaint(log: Path) -> str | None:
    with suppress(OSError):
        for line in reversed(log.read_text().splitlines()):
            if "FATAL:" in line:
                return line.partition("FATAL:")[2].strip()
    return None
