"""Statements that an exception of a signal handler ends; who comes next must not notice.

    python -m tests.soak.interrupted --mode transaction --count 3000 --what executemany

As a job's time limit does it: Celery's, django-rq's and Ctrl-C. It ends with an error if a row of
another request is lost or mixed up, another request fails, or what the interrupted task writes next
was acknowledged and is not there.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from queue import SimpleQueue
from time import monotonic
from typing import Any

import psycopg
from django.db import DatabaseError, InterfaceError

from tests.soak.script import Sums, Watchdog, serving
from tests.support.pools import APP
from tests.support.processes import ROOT
from tests.support.servers import Server, wait_until
from tests.support.sessions import EVERY_MODE, Begin, Session, begun
from tests.support.spoiling import MANY, TABLES, WRITE

ROWS = 60  # of one statement
TIMEOUT = 8.0  # seconds, of the pool
PATIENCE = 20.0  # seconds for each step; what takes longer hangs
SHORT = 9.0  # seconds of it in the suite
FEW = 3  # interruptions of each statement, even on a busy machine
TRIALS = 5  # uninterrupted runs that say how long a statement takes
LIMIT = 2  # connections of the pool
ERRORS = (psycopg.Error, DatabaseError, InterfaceError)


class OutOfTimeError(Exception):
    """Of a job, as SoftTimeLimitExceeded."""


class Interruption(BaseException):
    """As KeyboardInterrupt and gevent.Timeout."""


# The statements


def execute(session: Session) -> None:
    with session.cursor() as cursor:
        cursor.execute(f"INSERT INTO scratch SELECT generate_series(1, {50 * ROWS})")
        cursor.execute("SELECT 1")
        cursor.fetchall()


def executemany(session: Session) -> None:
    with session.cursor() as cursor:
        cursor.executemany(MANY, [(n,) for n in range(ROWS)])


def executemany_in_a_block(session: Session) -> None:
    with session.atomic(), session.cursor() as cursor:
        cursor.executemany(MANY, [(n,) for n in range(ROWS)])


def pipeline(session: Session) -> None:
    with session.pipeline(), session.cursor() as cursor:
        for n in range(ROWS // 4):
            cursor.execute(MANY, [n])


def stream(session: Session) -> None:
    with session.cursor() as cursor:
        for _ in cursor.stream(f"SELECT generate_series(1, {ROWS})"):
            pass


def copy_in(session: Session) -> None:
    with session.cursor() as cursor, cursor.copy("COPY scratch FROM STDIN") as copy:
        for n in range(ROWS):
            copy.write_row((n,))


def copy_out(session: Session) -> None:
    with (
        session.cursor() as cursor,
        cursor.copy(f"COPY (SELECT generate_series(1, {ROWS})) TO STDOUT") as copy,
    ):
        for _ in copy:
            pass


def server_cursor(session: Session) -> None:
    with session.server_cursor() as cursor:
        cursor.execute(f"SELECT generate_series(1, {ROWS})")
        while cursor.fetchmany(10):
            pass


def commit(session: Session) -> None:
    with session.atomic():
        execute(session)


def rollback(session: Session) -> None:
    with suppress(LookupError), session.atomic():
        execute(session)
        raise LookupError


def savepoints(session: Session) -> None:
    with session.atomic():
        for _ in range(3):
            with suppress(LookupError), session.atomic(), session.cursor() as cursor:
                cursor.execute(MANY, [0])
                if _ == 1:
                    raise LookupError


STATEMENTS: dict[str, Callable[[Session], None]] = {
    each.__name__: each
    for each in (
        execute, executemany, executemany_in_a_block, pipeline, stream, copy_in, copy_out,
        server_cursor, commit, rollback, savepoints,
    )
}  # fmt: skip


class Interrupted:
    """Runs statements in the main thread, and interrupts them; a second thread comes next."""

    def __init__(self, begin: Begin, seed: int) -> None:
        self.begin = begin
        self.random = random.Random(seed)  # noqa: S311
        self.sums = Sums()
        self.keys = count()
        self.acknowledged: dict[int, tuple[str, str]] = {}  # by whom, after which statement
        self.lengths: dict[str, float] = {}
        self.thrown: type[BaseException] | None = None
        self.asked: SimpleQueue[str | None] = SimpleQueue()
        self.answered: SimpleQueue[bool] = SimpleQueue()
        self.other = threading.Thread(target=self._be_the_next, daemon=True)
        signal.signal(signal.SIGALRM, self._throw)
        self.watchdog = Watchdog(self.sums, PATIENCE)
        self.other.start()

    def _throw(self, *_: object) -> None:
        thrown, self.thrown = self.thrown, None
        if thrown is not None:
            raise thrown

    # The interrupted one

    def interrupt(self, name: str) -> None:
        """One task whose statement is interrupted; then the next request."""
        self.sums.done[f"tries: {name}"] += 1
        session = self.begin()
        try:
            if not self._is_interrupted(STATEMENTS[name], session, name):
                return
            self.sums.done[f"interrupted: {name}"] += 1
            self._write_own(session, name)
        except Exception:
            self.sums.done["own writes that failed loudly"] += 1
        finally:
            self._end(session, name)
            self.asked.put(name)
            self.answered.get(timeout=PATIENCE)
            self.watchdog.feed()

    def _is_interrupted(
        self, statement: Callable[[Session], None], session: Session, name: str
    ) -> bool:
        delay = self._delay(name)
        try:
            began = monotonic()
            self.thrown = self.random.choice((OutOfTimeError, Interruption))
            signal.setitimer(signal.ITIMER_REAL, delay)
            statement(session)
            self.thrown = None
            self.lengths[name] += (monotonic() - began - self.lengths[name]) / 10
        except (OutOfTimeError, Interruption):
            return True
        except Exception as error:
            # The exception of the handler became the cause of another one, or was swallowed.
            if self.thrown is not None:
                self.sums.violation("fails without an interruption", f"{name}: {error!r}")
            return True
        finally:
            self.thrown = None
            signal.setitimer(signal.ITIMER_REAL, 0)
        return False

    def _write_own(self, session: Session, name: str) -> None:
        """What the task does when it is told that its time is over."""
        if session.is_left_in_atomic():
            self.sums.done["Django's own end of an atomic block was interrupted"] += 1
            return
        key = next(self.keys)
        with session.cursor() as cursor:
            cursor.execute(WRITE, [key, "own"])
            row = cursor.fetchone()
        if row != (key,):
            self.sums.violation("mixed up", f"own write after {name}: {row}")
        self.acknowledged[key] = ("own", name)

    def _end(self, session: Session, name: str) -> None:
        try:
            session.end()
        except ERRORS as error:
            self.sums.violation("the end of the interrupted request", f"{name}: {error!r}")

    def _delay(self, name: str) -> float:
        """At any point of the statement, half of them near its end; later ones miss it."""
        length = self.lengths.get(name) or self._length(name)
        if self.random.random() < 0.5:
            return length * self.random.uniform(0.7, 1.1)
        return length * self.random.uniform(0.0, 1.0) + 1e-6

    def _length(self, name: str) -> float:
        taken = []
        for _ in range(TRIALS):
            session = self.begin()
            began = monotonic()
            STATEMENTS[name](session)
            taken.append(monotonic() - began)
            session.end()
        self.lengths[name] = statistics.median(taken)
        return self.lengths[name]

    # Who comes next

    def _be_the_next(self) -> None:
        while (name := self.asked.get()) is not None:
            try:
                self._write_and_look(name)
            except BaseException as error:
                self.sums.violation("others fail", f"after {name}: {error!r}")
            finally:
                self.answered.put(True)

    def _write_and_look(self, name: str) -> None:
        session = self.begin()
        key = next(self.keys)
        try:
            with session.cursor() as cursor:
                cursor.execute(WRITE, [key, "next"])
                row = cursor.fetchone()
                if row != (key,):
                    self.sums.violation("mixed up", f"{row} after {name}")
        finally:
            session.end()
        self.acknowledged[key] = ("next", name)

    def close(self) -> None:
        self.asked.put(None)
        self.other.join(PATIENCE)
        self.watchdog.end()

    # The end

    def account(self, server: Server, pool: Any) -> None:
        """Count the rows from outside; the pool must have come to rest."""
        with server.admin() as admin:
            rows = {key for (key,) in admin.execute("SELECT key FROM kept").fetchall()}
        self.sums.done["rows"] = len(rows)
        for key, (whose, name) in self.acknowledged.items():
            if key not in rows:
                kind = "lost rows of others" if whose == "next" else "lost own rows"
                self.sums.violation(kind, f"after {name}")
        try:
            wait_until(lambda: not pool.in_use, "the pool to be at rest")
            wait_until(lambda: server.sessions(APP) <= LIMIT, "the sessions to end")
        except TimeoutError as error:
            self.sums.violation("not at rest", f"{error}; {pool.get_stats()}")


def interrupted(mode: str) -> None:
    """For a test: a few seconds of it, in a process whose main thread gets the signals."""
    what = [*STATEMENTS, "executemany", "executemany"]  # where an interruption does most harm
    done = subprocess.run(
        [sys.executable, "-m", __name__, f"--mode={mode}", f"--seconds={SHORT}", "--what", *what],
        check=False, capture_output=True, cwd=ROOT, text=True, timeout=SHORT + 5 * PATIENCE,
    )  # fmt: skip
    assert done.stdout, done.stderr
    sums = json.loads(done.stdout)
    assert not sums["violations"], f"{sums['violations']} {sums['examples']}\n{done.stderr}"
    for name in STATEMENTS:
        assert sums["done"].get(f"interrupted: {name}", 0) > FEW, sums["done"]


def interrupt(mode: str, names: list[str], seconds: float, number: int, seed: int) -> Sums:
    """Interrupt statements for so long, or so many of them."""
    with (
        serving(sql=TABLES) as server,
        begun(server, mode, max_size=LIMIT, timeout=TIMEOUT) as (begin, pool),
    ):
        run = Interrupted(begin, seed)
        end = monotonic() + seconds
        for turn in count():
            if number:
                is_over = turn >= number
            else:  # a busy machine needs longer until each was interrupted a few times
                late = monotonic() - end
                enough = all(run.sums.done[f"interrupted: {name}"] > FEW for name in names)
                is_over = late > PATIENCE or (late > 0 and enough)
            if is_over:
                break
            run.interrupt(names[turn % len(names)])
        run.close()
        run.account(server, pool)
        return run.sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=EVERY_MODE, default="request")
    parser.add_argument("--what", nargs="+", choices=STATEMENTS, default=list(STATEMENTS))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--count", type=int, default=0, help="in place of --seconds")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))  # noqa: S311
    options: Any = parser.parse_args()
    sums = interrupt(options.mode, options.what, options.seconds, options.count, options.seed)
    sums.done["seed"] = options.seed
    sums.end()


if __name__ == "__main__":
    main()
