"""django-pglock's advisory locks belong to a session."""

from __future__ import annotations

import time
from threading import Lock

from tests.compat.case import Case, in_threads


def check() -> None:
    import pglock

    inside = Lock()

    def work(_: int) -> bool:
        with pglock.advisory("shop"):
            alone = inside.acquire(blocking=False)
            time.sleep(0.01)
            if alone:
                inside.release()
        return alone

    assert all(in_threads(20, work))


CASE = Case(
    packages=["django-pglock"],
    apps=["pgactivity", "pglock"],
    tried="8 threads take one advisory lock, one at a time",
    check=check,
)
