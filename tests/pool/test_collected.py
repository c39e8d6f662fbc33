"""An iterator over rows that the garbage collector closes harms neither its process nor the pool.

MALLOC_PERTURB_ has the C library overwrite memory that is freed, so that its use ends the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.support.collected import collect_iterators
from tests.support.pools import AnyPool, opened, ours, pid, use
from tests.support.processes import run
from tests.support.servers import Server

ROUNDS = {"healthy": 24, "suspended": 12}


@pytest.mark.parametrize("how", ROUNDS)
def test_a_thread_that_ends_in_an_iterator_harms_nobody(shared: Server, how: str) -> None:
    result = run(shared, iterate, shared.conninfo, how, within=100, MALLOC_PERTURB_="165")
    assert result.status == 0, f"{result.status}: {result.errors}"


def iterate(conninfo: str, how: str) -> None:
    with opened(ours, conninfo, min_size=2, timeout=15) as pool:
        kinds = [partial(kind, pool) for kind in (given_back, dropped, of_a_portal)]
        collect_iterators(ROUNDS[how], kinds, lambda: use(pool), how)
        assert pool.get_stats()["pool_size"] <= 2


def given_back(pool: AnyPool, pids: list[int]) -> Iterator[Any]:
    """As a project should: in a transaction, and with a return."""
    with pool.connection() as conn:
        pids.append(pid(conn))
        with conn.transaction(), conn.cursor("rows") as cursor:
            cursor.itersize = 10
            yield from cursor.execute("SELECT generate_series(1, 1000)")


def dropped(pool: AnyPool, pids: list[int]) -> Iterator[Any]:
    """Nothing returns the connection."""
    conn = pool.getconn()
    pids.append(pid(conn))
    with conn.transaction(), conn.cursor("rows") as cursor:
        cursor.itersize = 10
        yield from cursor.execute("SELECT generate_series(1, 1000)")


def of_a_portal(pool: AnyPool, pids: list[int]) -> Iterator[Any]:
    """As Django in autocommit: a cursor WITH HOLD, which is closed by its own `finally`."""
    conn = pool.getconn()
    pids.append(pid(conn))
    cursor = conn.cursor("rows", withhold=True)
    try:
        yield from cursor.execute("SELECT generate_series(1, 1000)")
    finally:
        cursor.close()
