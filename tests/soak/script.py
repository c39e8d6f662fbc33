"""What the soak's scripts have in common: a server, Django, an end, and the sums."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django

from tests.support.servers import Server

EXAMPLES = 5  # of each kind of violation that are printed


@contextmanager
def serving(**server: Any) -> Iterator[Server]:
    """Start a server, and Django with a database on it."""
    for name in [name for name in os.environ if name.startswith(("DB_", "DATABASE_URL"))]:
        del os.environ[name]
    with Server(**server) as own:
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "abs_project.settings",
            "DATABASE_URL": own.url,
            "DB_POOL_MODE": "null",
            "ENV_FILE": os.devnull,
        }
        django.setup()
        logging.getLogger("abs_orm_app.pool").setLevel(logging.CRITICAL)
        logging.getLogger("psycopg").setLevel(logging.CRITICAL)
        yield own


class Sums:
    """What was done, and what must not happen: counted by kind, with some examples."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.violations: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def violation(self, kind: str, example: object = "") -> None:
        self.violations[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(str(example))

    def count_ignored(self, kind: type[BaseException]) -> None:
        """Count exceptions of this kind that are thrown into finalizers, in place of printing."""

        def hook(ignored: sys.UnraisableHookArgs) -> None:
            if ignored.exc_type is kind:
                self.done[f"{kind.__name__} in a finalizer"] += 1
            else:
                sys.__unraisablehook__(ignored)

        sys.unraisablehook = hook

    def report(self) -> str:
        """One JSON object."""
        return json.dumps(
            {"done": self.done, "violations": self.violations, "examples": self.examples}, indent=1
        )

    def write(self) -> None:
        sys.stdout.write(f"{self.report()}\n")
        sys.stdout.flush()

    def end(self) -> None:
        """Print the sums, and exit: 1 if something happened that must not."""
        self.write()
        if self.violations:
            os._exit(1)  # a thread that hangs may be one that Python would wait for
        sys.exit(0)


class Watchdog:
    """Ends the process, with the stacks of all threads and the sums, if nobody feeds it.

    A thread that hangs may be the main one, and cannot be ended otherwise.
    """

    def __init__(self, sums: Sums, seconds: float) -> None:
        self._sums, self._seconds = sums, seconds
        self._fed = threading.Event()
        self._over = False
        threading.Thread(target=self._watch, daemon=True).start()

    def feed(self) -> None:
        self._fed.set()

    def end(self) -> None:
        self._over = True
        self._fed.set()

    def _watch(self) -> None:
        while not self._over:
            self._fed.clear()
            if not self._fed.wait(self._seconds):
                faulthandler.dump_traceback(all_threads=True)
                self._sums.violation("hangs", f"for {self._seconds:.0f} s; see the stacks")
                self._sums.write()
                os._exit(1)
