"""Shares the state of pools among the processes of this machine that serve the page.

While someone views the page, each process writes a small file once a second, into a directory that
only its own user can read; while a viewer has pinned it, the file has all that the page shows of
its pools. Files that are some seconds old, or of processes that have ended, are ignored and
removed. Nothing here raises: without the directory, the page shows one process.
"""

import atexit
import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from time import monotonic, sleep, time
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.crypto import salted_hmac

from abs_orm_app.backends.serving import requests_of
from abs_orm_app.config.texts import counted
from abs_orm_app.facts.active import current_pools
from abs_orm_app.facts.snapshot import snapshot
from abs_orm_app.integrations.admin_page.live import Live, from_json, live, to_json
from abs_orm_app.pool.housekeeping import observers

LOOKED_AT = "looked-at"  # the file whose age tells when the page was last viewed
AWAKE = 15.0  # seconds after a view for which processes write
STALE = 10.0  # seconds after which a file is ignored
LARGEST = 10_000_000  # bytes of a file that are read
EVERY = 0.9  # the least seconds between two files of a process
TOLD_WITHIN = 1.5  # seconds after the first view in which all processes write
ANSWER_WITHIN = 3.0  # seconds for a newly pinned process to answer

_written_at = 0.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pool of one process, as reported about a second ago."""

    pid: int
    alias: str
    in_use: int
    limit: int
    waiting: int
    failed: int  # requests that got no connection, since the pool was created
    trouble: str  # "" if nothing is wrong
    longest: str  # who holds a connection for longest


def keep() -> None:
    if tell not in observers:
        observers.append(tell)


def rows() -> list[Row]:
    """Return the pools of all processes that have written recently, sorted by process."""
    found: list[Row] = []
    if home := _directory():
        _touch(home / LOOKED_AT)
        write(home)
        found = list(_told(home))
    return sorted(found, key=lambda row: (str(row.pid).rjust(10), str(row.alias)))


def troubles(told: Iterable[Row]) -> Iterator[tuple[str, str, str]]:
    """Yield each alias in trouble, the trouble, and a sentence that names the processes."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in told:
        if row.trouble:
            found.setdefault((row.alias, row.trouble), []).append(row)
    for (alias, trouble), them in found.items():
        processes = " and ".join(str(row.pid) for row in them)
        text = f"{trouble}, in process {processes}"
        if waiting := sum(row.waiting for row in them):
            held = f"; one is held by {them[0].longest}" if them[0].longest else ""
            text += f": {counted(waiting, 'request')} waiting{held}"
        yield alias, trouble, f"{text}."


def trouble_of(alias: str) -> str:
    """Return what is wrong with an alias in other processes; "" if none reports anything."""
    if (home := _directory()) is None:
        return ""
    asleep = not _is_fresh(home / LOOKED_AT, AWAKE)
    _touch(home / LOOKED_AT)
    sleep(TOLD_WITHIN if asleep else 0)
    others = [row for row in _told(home) if row.pid != os.getpid()]
    return " ".join(text for name, _, text in troubles(others) if name == alias)


def pinned(pid: int) -> dict[str, Live] | None:
    """Return the pools of another process, by alias; None if it does not report them."""
    home = _directory()
    if home is None:
        return None
    until = monotonic() + ANSWER_WITHIN
    while lives(pid) and monotonic() < until:
        _touch(home / LOOKED_AT, _asked(home, pid))
        with suppress(KeyError, TypeError, ValueError):
            told = _read(_file(home, pid)) or {"pools": None}
            if (pools := told["pools"]) is not None:
                return {alias: from_json(pool) for alias, pool in pools.items()}
        sleep(0.05)
    return None


def tell(_: object = None) -> None:
    """Report this process's pools if someone views the page; else, one `stat` a second."""
    global _written_at
    now = monotonic()
    if now - _written_at < EVERY:
        return
    _written_at = now
    with suppress(OSError, ImproperlyConfigured):
        home = _path()
        if _is_fresh(home / LOOKED_AT, AWAKE) and _is_private(home):
            write(home)


def write(home: Path) -> None:
    mine = os.getpid()
    told: dict[str, Any] = {"rows": list(_own())}
    if _is_fresh(_asked(home, mine), AWAKE):
        pools = {alias: live(alias) for alias in current_pools()}
        told["pools"] = {alias: pool for alias, pool in pools.items() if pool}
    part = home / f"{mine}-{threading.get_ident()}.part"
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(handle, "w") as file:
            file.write(json.dumps(told, default=to_json))
        part.replace(_file(home, mine))
    except OSError:  # a full disk
        with suppress(OSError):
            part.unlink()


def _own() -> Iterator[Row]:
    for alias, pool in current_pools().items():
        if pool.closed:
            continue
        now, longest = snapshot(pool), ""
        for holder in pool.holders()[:1]:
            request = requests_of({holder.thread}).get(holder.thread)
            longest = f"{request.label if request else holder.who}, {holder.seconds:.1f} s"
        yield Row(
            pid=os.getpid(),
            alias=alias,
            in_use=now.in_use,
            limit=now.limit,
            waiting=now.waiting,
            failed=now.errors,
            trouble=now.cause.problem if now.cause else "",
            longest=longest,
        )


def _told(home: Path) -> Iterator[Row]:
    """Yield what each process has reported; remove stale files."""
    with suppress(OSError):
        for file in home.iterdir():
            if not (_is_fresh(file, STALE) and lives(_pid_of(file))) and file.name != LOOKED_AT:
                with suppress(OSError):
                    file.unlink()
            elif file.suffix == ".json" and (told := _read(file)):
                with suppress(KeyError, TypeError, ValueError):  # written by another version
                    yield from [Row(**row) for row in told["rows"]]


def _read(file: Path) -> Any:
    """Return what a process has reported; None if that is too old or cannot be read."""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW)) as text:
            fresh = time() - os.fstat(text.fileno()).st_mtime < STALE
            return json.loads(text.read(LARGEST)) if fresh else None
    except (OSError, ValueError):
        return None


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (ProcessLookupError, OverflowError):
        return False
    return pid > 0  # else it names a group


def _is_fresh(file: Path, seconds: float) -> bool:
    try:
        return time() - file.lstat().st_mtime < seconds
    except OSError:
        return False


def _touch(*files: Path) -> None:
    for file in files:
        with suppress(OSError):
            file.touch(0o600)


def _directory() -> Path | None:
    """Return the directory, created if missing; None if another user can read or write in it."""
    try:
        home = _path()
        with suppress(FileExistsError):
            home.mkdir(0o700)
        return home if _is_private(home) else None
    except (OSError, ImproperlyConfigured):  # such as without SECRET_KEY
        return None


def _path() -> Path:
    """Return one path per user and project: its name depends on the project's secret key."""
    name = salted_hmac("abs_orm_app.neighbours", settings.SETTINGS_MODULE or "").hexdigest()[:16]
    return Path(gettempdir()) / f"abs_orm_app-{os.geteuid()}-{name}"


def _is_private(home: Path) -> bool:
    found = home.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return mine and not found.st_mode & 0o077


def _file(home: Path, pid: int) -> Path:
    return home / f"{pid}.json"


def _asked(home: Path, pid: int) -> Path:
    """Return the file whose age tells when a viewer last pinned the process."""
    return home / f"{pid}.asked"


def _pid_of(file: Path) -> int:
    """Return the process that a file belongs to; 0 if it is not one of our files."""
    number = file.stem.partition("-")[0]
    return int(number) if number.isascii() and number.isdecimal() else 0


@atexit.register
def _leave() -> None:
    with suppress(Exception):  # the settings may be gone
        _file(_path(), os.getpid()).unlink(missing_ok=True)
