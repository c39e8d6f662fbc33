"""The other processes of this machine that serve the page: what their pools do, a row each.

Each process writes a small file once a second while somebody looks at the page, into a directory
that only its own user can read. What is older than some seconds, or of a process that is gone, is
not shown, and removed. Nothing here raises: without the directory, the page shows one process.
"""

from __future__ import annotations

import atexit
import json
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.crypto import salted_hmac

from abs_orm_app.facts.active import current_pools
from abs_orm_app.facts.snapshot import snapshot
from abs_orm_app.pool.holders import Holder

LOOKED_AT = "looked-at"  # the file whose age says when somebody looked last
AWAKE = 15.0  # seconds after a look for which processes write
STALE = 10.0  # seconds after which a file counts no more
LARGEST = 20_000  # bytes of a file that are read
EVERY = 1.0  # seconds between two files of a process

_written_at = 0.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pool of one process, as of a second ago."""

    pid: int
    alias: str
    in_use: int
    limit: int
    waiting: int
    failed: int  # requests that got no connection, since the pool was made
    trouble: str  # "" if nothing is wrong
    longest: str  # who holds a connection for longest


def rows() -> list[Row]:
    """The pools of all processes that have written lately, by process."""
    home = _directory()
    if home is None:
        return []
    with suppress(OSError):
        (home / LOOKED_AT).touch(0o600)
    write(home)
    found = []
    with suppress(OSError):
        for file in home.glob("*.json"):
            found += _read(file)
    return sorted(found, key=lambda row: (str(row.pid).rjust(10), str(row.alias)))


def tell() -> None:
    """Write what this process does, if somebody looks. Costs one `stat` a second if nobody does."""
    global _written_at
    now = monotonic()
    if now - _written_at < EVERY:
        return
    _written_at = now
    with suppress(OSError, ImproperlyConfigured):  # such as without SECRET_KEY
        home = _path()
        if time() - (home / LOOKED_AT).stat().st_mtime < AWAKE and _is_private(home):
            write(home)


def write(home: Path) -> None:
    text = json.dumps([asdict(row) for row in _own()])
    part = home / f"{os.getpid()}.part"
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(handle, "w") as file:
            file.write(text)
        part.replace(_own_file(home))
    except OSError:  # a full disk
        with suppress(OSError):
            part.unlink()


def _own() -> list[Row]:
    from abs_orm_app.backends.serving import requests_of

    found = []
    for alias, pool in current_pools().items():
        if pool.closed:
            continue
        now, holders = snapshot(pool), pool.holders()
        found.append(
            Row(
                pid=os.getpid(),
                alias=alias,
                in_use=now.in_use,
                limit=now.limit,
                waiting=now.waiting,
                failed=now.errors,
                trouble=now.cause.problem if now.cause else "",
                longest=_longest(holders, requests_of({h.thread for h in holders[:1]})),
            )
        )
    return found


def _longest(holders: list[Holder], requests: dict[str, Any]) -> str:
    if not holders:
        return ""
    longest = holders[0]
    request = requests.get(longest.thread)
    kind = "task" if longest.is_task else "thread"
    who = request.label if request else f"{kind} {longest.thread}"
    return f"{who}, {longest.seconds:.1f} s"


def _read(file: Path) -> list[Row]:
    """The rows of a file; none, and the file is removed, if it is stale or its process is gone."""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW)) as text:
            age = time() - os.fstat(text.fileno()).st_mtime
            if age <= STALE and _lives(int(file.stem)):
                return [Row(**row) for row in json.loads(text.read(LARGEST))]
    except (OSError, ValueError, TypeError):
        return []
    with suppress(OSError):
        file.unlink()
    return []


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _directory() -> Path | None:
    """The directory, made if it is missing; None if another user could read or write in it."""
    try:
        home = _path()
        with suppress(FileExistsError):
            home.mkdir(0o700)
        return home if _is_private(home) else None
    except OSError:
        return None


def _path() -> Path:
    """One for each user and project: its name is made with the project's secret key."""
    name = salted_hmac("abs_orm_app.neighbours", settings.SETTINGS_MODULE or "").hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"abs_orm_app-{os.geteuid()}-{name}"


def _is_private(home: Path) -> bool:
    found = home.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return mine and not found.st_mode & 0o077


def _own_file(home: Path) -> Path:
    return home / f"{os.getpid()}.json"


@atexit.register
def _leave() -> None:
    with suppress(Exception):  # the settings may be gone
        _own_file(_path()).unlink(missing_ok=True)
