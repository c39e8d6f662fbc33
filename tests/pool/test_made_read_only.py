"""A role or a server that is made read-only while the pool is open: reads go on, and no connection
is replaced without end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from time import sleep
from typing import Any

import psycopg
import pytest

from tests.support.pools import AnyPool, opened, ours, repeating
from tests.support.servers import Server, wait_until

SIZE = 4
SECONDS = 3.0  # of reads
MOST = 3 * SIZE  # connections that the pool opens in that time, to look again
# By a provider whose disk is full, for the server; by an administrator, for the role.
READ_ONLY = {
    "role": (
        "ALTER ROLE app SET default_transaction_read_only = on",
        "ALTER ROLE app RESET default_transaction_read_only",
    ),
    "server": (
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "ALTER SYSTEM RESET default_transaction_read_only",
    ),
}

pytestmark = [
    pytest.mark.server(
        roles=["app LOGIN"],
        sql=["CREATE TABLE written ()", "GRANT INSERT, SELECT ON written TO app"],
    ),
    pytest.mark.parametrize("what", READ_ONLY),
]


class Opened:
    """Counts the connections that the pool opens."""

    def __init__(self) -> None:
        self.count = 0

    def configure(self, _: psycopg.Connection[Any]) -> None:
        self.count += 1


def execute(server: Server, statements: Sequence[str]) -> None:
    with server.admin() as admin:
        for statement in (*statements, "SELECT pg_reload_conf()"):
            admin.execute(statement)


def reading(pool: AnyPool) -> AbstractContextManager[None]:
    def read() -> None:
        with pool.connection() as conn:
            conn.execute("SELECT count(*) FROM written")

    return repeating(read, 2)


def can_write(pool: AnyPool) -> bool:
    try:
        with pool.connection() as conn:
            conn.execute("INSERT INTO written DEFAULT VALUES")
    except psycopg.errors.ReadOnlySqlTransaction:
        return False
    return True


@pytest.fixture
def count() -> Opened:
    return Opened()


@pytest.fixture
def pool(server: Server, count: Opened) -> Iterator[AnyPool]:
    """A pool that has seen that the server is a primary, and has written."""
    conninfo = f"{server.conninfo} user=app"
    with opened(ours, conninfo, min_size=SIZE, configure=count.configure) as made:
        assert can_write(made)
        yield made


def test_reads_cost_no_reconnects_without_end(
    server: Server, pool: AnyPool, count: Opened, what: str
) -> None:
    execute(server, READ_ONLY[what][:1])
    server.terminate()  # as after a restart: new sessions have the role's setting
    wait_until(lambda: not can_write(pool), "the setting to be in force")
    before = count.count
    with reading(pool):
        sleep(SECONDS)
    assert count.count - before <= MOST


def test_writes_work_soon_after_it_is_writable_again(
    server: Server, pool: AnyPool, count: Opened, what: str
) -> None:
    execute(server, READ_ONLY[what][:1])
    server.terminate()
    wait_until(lambda: not can_write(pool), "the setting to be in force")
    execute(server, READ_ONLY[what][1:])
    with reading(pool):
        wait_until(lambda: can_write(pool), "a write")
