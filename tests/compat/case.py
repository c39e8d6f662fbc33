"""What a case is, and what its checks have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django.db import connections

Result = TypeVar("Result")
POOL = {"DB_POOL_SIZE": "2", "DB_MAX_OVERFLOW": "2", "DB_POOL_TIMEOUT": "5"}
LIMIT = 4  # connections: size + overflow


@dataclass(frozen=True, kw_only=True)
class Case:
    """One package, what a project sets to use it, and what is tried.

    lines: settings that only this engine makes necessary, as Python. With lines, the case is run
        without them as well, and has to fail.
    setup: runs after the settings and before django.setup(), as an agent of an APM wants it.
    """

    packages: Sequence[str]  # for pip; the first gives the row its name
    tried: str  # what `check` shows, for docs/compatibility.md
    check: Callable[[], None]  # raises if the package does not work
    apps: Sequence[str] = ()
    middleware: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ""  # the package's own
    lines: str = ""
    note: str = ""  # why the lines, or what else to know
    variables: Mapping[str, str] = field(default_factory=dict)  # of the environment
    setup: Callable[[], None] = lambda: None
    migrates: bool = True
    contrib: bool = False  # needs PostgreSQL's own extensions, which Debian's server has
    empty_extension: str = ""  # that the package creates; an empty one stands in for it


def in_threads(count: int, work: Callable[[int], Result]) -> list[Result]:
    """Call work(0), work(1) …, in twice as many threads as the pool has connections.

    Each call ends as a request does: it returns its connection.
    """

    def request(number: int) -> Result:
        try:
            return work(number)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2 * LIMIT) as executor:
        return list(executor.map(request, range(count)))
