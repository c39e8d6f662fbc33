"""`make demo`: the live page, with something to see.

It starts a PostgreSQL of its own in a new directory, two web servers and some load, prints the
address of the page and who may log in, and removes everything at its end: after so many minutes,
or at Ctrl-C. It reads no DATABASE_URL and no .env file, so that it cannot touch another database.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from urllib.error import URLError
from urllib.request import urlopen

from abs_orm_app.embedded import EmbeddedError, embedded_url, stop

ROOT = Path(__file__).resolve().parent.parent
PAGE = "/admin/abs_orm_app/pools/"
USER = "demo"
STARTS_IN = 60.0  # seconds, for each thing that is started
POOL = {
    "DB_POOL_SIZE": "4",
    "DB_MAX_OVERFLOW": "2",
    "DB_POOL_TIMEOUT": "5",
    "DB_POOL_LEAK_SECONDS": "1",
    "DB_POOL_PROCESSES": "2",
}
OURS = ("DATABASE_URL", "DB_", "DJANGO_", "ENV_FILE")


def waves() -> Iterator[Sequence[str]]:
    """Paths that are asked for at the same time; now and then more than a pool has connections."""
    while True:
        wave = 3 + 2 * math.sin(time.monotonic() / 20)
        crowd = random.random() < 0.03  # noqa: S311
        visitors = 14 if crowd else round(random.uniform(1, wave))  # noqa: S311
        times = [random.choice([3, 8, 20, 60]) for _ in range(visitors)]  # noqa: S311
        if random.random() < 0.01:  # noqa: S311
            times.append(3000)
        yield [f"/slow/?ms={milliseconds}" for milliseconds in times]


def main() -> None:
    arguments = _parse()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    try:
        _show(arguments.port, arguments.minutes)
    except KeyboardInterrupt:
        pass  # the way to end it
    except EmbeddedError as refusal:
        sys.exit(str(refusal))
    _say("\nStopped, and removed what was made.")


def _show(port: int, minutes: float) -> None:
    """Start everything, and remove it after so many minutes, or at an exception."""
    with ExitStack() as stack:
        _say("Starting PostgreSQL, and making the tables and a user.")
        directory = stack.enter_context(_database())
        environ = _environment(directory)
        password = secrets.token_urlsafe(9)
        _manage(environ, "migrate", "--verbosity=0")
        superuser = ("createsuperuser", "--noinput", f"--username={USER}", "--email=")
        _manage({**environ, "DJANGO_SUPERUSER_PASSWORD": password}, *superuser, "--verbosity=0")
        ports = (_free_port(port), _free_port())
        sites = [stack.enter_context(_web_server({**environ, **POOL}, each)) for each in ports]
        _say(f"\n  page      {sites[0]}{PAGE}")
        _say(f"  user      {USER}\n  password  {password}\n")
        embedded = f"{sys.executable} -m abs_orm_app.embedded"
        _say(f"To stop the database, and start it again:\n  {embedded} stop {directory}")
        _say(f"  {embedded} start {directory}\n")
        unit = "minute" if minutes == 1 else "minutes"
        _say(f"It ends in {minutes:g} {unit}, or with Ctrl-C.")
        _load(sites, time.monotonic() + 60 * minutes)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m abs_project.demo", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="after which it ends (30)")
    parser.add_argument("--port", type=int, default=8000, help="of the page, if it is free (8000)")
    return parser.parse_args()


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def _database() -> Iterator[Path]:
    """A new PostgreSQL; yields its directory."""
    with tempfile.TemporaryDirectory(prefix="abs_orm_app-demo-") as temporary:
        Path(temporary).chmod(0o755)  # root runs PostgreSQL under another account
        directory = Path(temporary, "postgresql")
        try:
            yield directory
        finally:
            stop(directory)


def _environment(directory: Path) -> dict[str, str]:
    """What the sample project reads, for a PostgreSQL that is started here."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}
    ours = {
        "DATABASE_URL": embedded_url(directory),
        "ENV_FILE": os.devnull,
        "TMPDIR": str(directory.parent),  # of the page's files, which then end with it
    }
    return {**kept, **ours, "SECRET_KEY": secrets.token_urlsafe(50)}


def _manage(environ: dict[str, str], *arguments: str) -> None:
    """Run a command of the sample project to its end."""
    subprocess.run(  # noqa: S603
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=environ,
        process_group=0,  # Ctrl-C is for this process, which ends the others
        timeout=STARTS_IN,
        check=True,
    )


def _free_port(wanted: int = 0) -> int:
    """Return `wanted`, or any other port if that is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _web_server(environ: dict[str, str], port: int) -> Iterator[str]:
    """Django's development server, until the end of the block; yields its address."""
    site = f"http://127.0.0.1:{port}"
    command = ("manage.py", "runserver", "--noreload", f"127.0.0.1:{port}")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, *command],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            if not _answers(site, process):
                log.seek(0)
                said = log.read().decode(errors="replace")
                sys.exit(f"The web server at {site} did not start:\n{said}")
            yield site
        finally:
            process.kill()
            process.wait()


def _answers(site: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait for the site's first answer; False if its process ends, or it takes too long."""
    deadline = time.monotonic() + STARTS_IN
    while process.poll() is None and time.monotonic() < deadline:
        if _get(f"{site}/"):
            return True
        time.sleep(0.1)
    return False


def _get(url: str) -> bool:
    """Return True if the address answers without an error."""
    with suppress(URLError, OSError), urlopen(url, timeout=STARTS_IN):  # noqa: S310
        return True
    return False


def _load(sites: Sequence[str], end: float) -> None:
    """Visit all sites until `end`; returns at Ctrl-C by KeyboardInterrupt."""
    stopped = threading.Event()
    with ExitStack() as stack:
        stack.callback(stopped.set)
        for site in sites:
            threading.Thread(target=_visit, args=(site, stopped), daemon=True).start()
        while time.monotonic() < end:
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))


def _visit(site: str, stopped: threading.Event) -> None:
    with ThreadPoolExecutor(max_workers=24) as visitors:
        for wave in waves():
            list(visitors.map(_get, [f"{site}{path}" for path in wave]))
            if stopped.wait(random.uniform(0.0, 0.15)):  # noqa: S311
                return


if __name__ == "__main__":
    main()
