"""What a case is, and what its checks have in common."""

from __future__ import annotations

import asyncio
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
    tried: str  # what `check` shows
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
    python: tuple[int, int] = (3, 11)  # the oldest that the package can be installed for
    contrib: bool = False  # needs PostgreSQL's own extensions, which Debian's server has
    django: tuple[int, ...] = ()  # the oldest release that it works with
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


async def get_all(app: Any, paths: Sequence[str]) -> None:
    """Request all paths of an ASGI application at the same time; each must succeed."""
    import httpx

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answers = await asyncio.gather(*map(client.get, paths))
    assert {answer.status_code for answer in answers} == {200}
