"""Writers and readers on one address, in a process of their own, until its stdin is closed.

    with Load("pool", url, file) as load:
        load.writes()

Each write is a line of JSON in the file. `pool` uses Django's ORM on this engine, and a pool with
more connections than threads. `fresh` connects anew for each write, and begins several times a
second whatever the others wait for: it is as early as any new connection can be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Self
from uuid import uuid4

import django
import psycopg
from django.db import connection, transaction

from tests.cluster.nodes import TIMELINE
from tests.support.readme import ROOT

WRITERS, READERS = 12, 6
PAUSE = 0.05  # seconds between two statements of a thread
FRESH_EVERY = 0.2  # seconds between two fresh connections
FRESH_MOST = 80  # of them that may wait at the same time
INSERT = f"INSERT INTO written VALUES (%s) RETURNING {TIMELINE}"
SELECT = "SELECT FROM written LIMIT 1"
POOL = {"DB_POOL_SIZE": "12", "DB_MAX_OVERFLOW": "12", "DB_POOL_MODE": "pool"}
CONNECT_TIMEOUT = 10  # seconds, as `database_from_env` sets it
END = 45.0  # seconds; a write that waits for a connection ends within DB_POOL_TIMEOUT


@dataclass(frozen=True)
class Write:
    """A statement: when, and what came of it (`monotonic`)."""

    key: str  # of the row; "" for a statement that reads
    began: float
    ended: float
    timeline: int  # of the server that has acknowledged it, 0 if it failed
    error: str = ""


class Load:
    """The process, seen from another one."""

    def __init__(self, kind: str, url: str, file: Path) -> None:
        self._kind, self._url, self._file = kind, url, file

    def __enter__(self) -> Self:
        names = {n: t for n, t in os.environ.items() if not n.startswith(("DB_", "PG"))}
        names |= POOL | {"DATABASE_URL": self._url, "DEBUG": "false", "ENV_FILE": os.devnull}
        names["DJANGO_SETTINGS_MODULE"] = "abs_project.settings"
        with self._file.with_suffix(".log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.load", self._kind, self._url, self._file],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=names,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Tell the threads to end, and wait for what they have begun."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END + 10)
        finally:
            self._process.kill()
            self._process.wait()

    def writes(self) -> list[Write]:
        """All statements that have ended so far, in the order in which they did."""
        if not self._file.exists():
            return []
        lines = self._file.read_text().rpartition("\n")[0].splitlines()
        return [Write(**json.loads(line)) for line in lines]


def pooled(*, writes: bool, atomic: bool) -> int:
    """One request of Django's: a write, on its own or in a transaction, or a query."""
    try:
        with transaction.atomic() if atomic else nullcontext(), connection.cursor() as cursor:
            if atomic or not writes:
                cursor.execute(SELECT)
            if not writes:
                return 0
            cursor.execute(INSERT, [_key.value])
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def fresh(url: str) -> int:
    """A write on a new connection."""
    with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT) as connection:
        row = connection.execute(INSERT, [_key.value]).fetchone()
        assert row is not None
        return int(row[0])


class _Key(threading.local):
    value = ""


_key = _Key()


class Report:
    """Appends what comes of each statement to the file."""

    def __init__(self, file: Path) -> None:
        self._out = file.open("w")
        self._lock = threading.Lock()

    def run(self, work: Callable[[], int], *, writes: bool) -> None:
        _key.value = str(uuid4()) if writes else ""
        began, timeline, error = monotonic(), 0, ""
        try:
            timeline = work()
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        done = Write(_key.value, began, monotonic(), timeline if writes else 0, error)
        with self._lock:
            self._out.write(json.dumps(asdict(done)) + "\n")
            self._out.flush()


class Threads:
    """Threads that run until they are told to end; a statement on a frozen server never does."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._end = threading.Event()
        self._running: list[threading.Thread] = []

    def repeat(self, work: Callable[[], int], *, writes: bool) -> None:
        """Run the work again and again, in a thread."""

        def loop() -> None:
            while not self._end.wait(PAUSE):
                self._report.run(work, writes=writes)

        self._start(loop)

    def begin_often(self, work: Callable[[], int]) -> None:
        """Run the work in a new thread each time, until the end."""

        def one() -> None:
            self._report.run(work, writes=True)

        def loop() -> None:
            while not self._end.wait(FRESH_EVERY):
                self._running = [each for each in self._running if each.is_alive()]
                if len(self._running) < FRESH_MOST:
                    self._start(one)

        self._start(loop)

    def end(self) -> None:
        """Tell them to end, and wait."""
        self._end.set()
        deadline = monotonic() + END
        for thread in list(self._running):
            thread.join(max(0.0, deadline - monotonic()))

    def _start(self, function: Callable[[], None]) -> None:
        thread = threading.Thread(target=function, daemon=True)
        self._running.append(thread)
        thread.start()


def main(kind: str, url: str, file: Path) -> None:
    threads = Threads(Report(file))
    if kind == "pool":
        django.setup()
        for number in range(WRITERS):
            work = partial(pooled, writes=True, atomic=number % 2 == 0)
            threads.repeat(work, writes=True)
        for _ in range(READERS):
            threads.repeat(partial(pooled, writes=False, atomic=False), writes=False)
    else:
        threads.begin_often(partial(fresh, url))
    sys.stdin.buffer.read()
    threads.end()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # daemon threads would otherwise hold up the end
