"""Whatever interrupts a statement: its connection is closed, and the next request is served."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from tests.soak.interrupted import interrupted
from tests.support.bytecodes import signals_leave_locks
from tests.support.processes import Watch
from tests.support.servers import Server
from tests.support.sessions import Session, begun
from tests.support.spoiling import (
    TABLES,
    executemany,
    executemany_of_another_class,
    pipeline,
    seconds_of_ends,
    sweep,
)

pytestmark = pytest.mark.server(sql=TABLES)


@pytest.mark.usefixtures("unblocked")
@pytest.mark.parametrize("statement", [executemany, executemany_of_another_class, pipeline])
def test_an_exception_within_psycopg_costs_nobody_else(
    shared: Server, release: str, statement: Callable[[Session], None]
) -> None:
    with begun(shared, release, timeout=5) as (begin, _):
        sweep(shared, begin, statement)


@signals_leave_locks
def test_signals_during_statements_cost_nobody_else(release: str) -> None:
    interrupted(release)


@pytest.mark.usefixtures("unblocked")
def test_interrupted_statements_never_exceed_the_limit_as_the_server_counts(
    server: Server, release: str
) -> None:
    with begun(server, release, max_size=3, timeout=20) as (begin, _), Watch(server) as watch:
        taken = seconds_of_ends(begin, 15)
        session = begin()
        with session.cursor() as cursor:
            cursor.execute("SELECT 1")
        session.end()
    assert watch.most <= 3
    assert statistics.median(taken) < 1.0
