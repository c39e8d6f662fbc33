"""The private names of psycopg_pool and psycopg that the engine stands on: each is still there.

When one of these tests fails after an upgrade, read what changed in psycopg_pool at that name, and
only then change `connector.py`, `queue.py` or `pool.py`.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import psycopg
import psycopg_pool
import pytest
from psycopg_pool.base import BasePool
from psycopg_pool.pool import ConnectionPool, MaintenanceTask, ShrinkPool, WaitingClient
from psycopg_pool.sched import Scheduler

import abs_orm_app
from abs_orm_app.pool.pool import HardenedPool
from tests.support.servers import Server

APP = Path(abs_orm_app.__file__).parent
MODULES = ["connector.py", "queue.py", "pool.py"]

CALLED = {  # psycopg_pool's methods that we call, with the parameters that we rely on
    "_check_open_getconn": [],
    "_check_pool_putconn": ["conn"],
    "_check_size": ["min_size", "max_size"],
    "_open": [],
    "_reset_connection": ["conn"],
    "_set_connection_expiry_date": ["conn"],
}
REPLACED = {  # its methods that it calls itself, and that are ours here
    "_add_to_pool": ["conn"],
    "_connect": ["timeout"],
    "_shrink_pool": [],
    "_start_initial_tasks": [],
    "_start_workers": [],
}
FIELDS = {
    "_closed",
    "_configure",
    "_lock",
    "_max_size",
    "_min_size",
    "_nconns",
    "_nconns_min",
    "_pool",
    "_pool_full_event",
    "_reset",
    "_sched",
    "_sched_runner",
    "_stats",
    "_waiting",
}
COUNTERS = {
    "_CONNECTIONS_ERRORS",
    "_CONNECTIONS_LOST",
    "_CONNECTIONS_MS",
    "_CONNECTIONS_NUM",
    "_REQUESTS_ERRORS",
    "_REQUESTS_NUM",
    "_REQUESTS_QUEUED",
    "_REQUESTS_WAIT_MS",
    "_RETURNS_BAD",
    "_USAGE_MS",
}
OF_CLIENTS = {"_cond", "conn", "error"}
OF_CONNECTIONS = {"_expire_at", "_pool"}


@pytest.fixture(scope="module")
def stock() -> Iterator[ConnectionPool[psycopg.Connection]]:
    with Server() as server, ConnectionPool(server.conninfo, min_size=1, open=True) as pool:
        pool.wait(10)
        yield pool


def test_this_list_is_complete() -> None:
    """No other private name of psycopg_pool is used, and none of these in vain."""
    listed = {*CALLED, *REPLACED, *FIELDS, *COUNTERS, *OF_CONNECTIONS, "_cond", "_run"}
    used = set()
    for module in MODULES:
        for node in ast.walk(ast.parse((APP / "pool" / module).read_text())):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            if isinstance(node, ast.FunctionDef):
                used.add(node.name)
    theirs = inspect.getsource(psycopg_pool.pool) + inspect.getsource(psycopg_pool.base)
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    assert {name for name in private if f".{name}" in theirs} == listed


def test_no_other_module_uses_psycopg_pools_private_names() -> None:
    names = {*CALLED, *REPLACED, *FIELDS} - {"_pool", "_lock"}
    for path in APP.rglob("*.py"):
        if path.name in MODULES:
            continue
        nodes = list(ast.walk(ast.parse(path.read_text())))
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert used & names <= own, path.name


@pytest.mark.parametrize("name", [*CALLED, *REPLACED])
def test_a_method_has_the_parameters_that_we_rely_on(name: str) -> None:
    parameters = list(inspect.signature(getattr(ConnectionPool, name)).parameters)[1:]
    assert parameters == {**CALLED, **REPLACED}[name]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_pool_has_the_field(stock: ConnectionPool[psycopg.Connection], name: str) -> None:
    assert hasattr(stock, name)


@pytest.mark.parametrize("name", sorted(COUNTERS))
def test_the_name_of_a_counter_is_a_constant(name: str) -> None:
    assert isinstance(getattr(BasePool, name), str)


def test_open_starts_the_workers_and_the_initial_tasks() -> None:
    called: list[str] = []

    class Watched(HardenedPool):
        def _start_workers(self) -> None:
            called.append("workers")
            super()._start_workers()

        def _start_initial_tasks(self) -> None:
            called.append("tasks")
            super()._start_initial_tasks()

    pool = Watched("host=/nowhere", min_size=1)
    pool.open()
    pool.close()
    assert called == ["workers", "tasks"]


def test_a_connection_gets_its_age_and_its_pool(stock: ConnectionPool[psycopg.Connection]) -> None:
    with stock.connection() as conn:
        assert monotonic() + 3600 * 0.94 < conn._expire_at <= monotonic() + 3600
        assert conn._pool is stock
    assert conn._pool is None


def test_a_waiting_client_takes_one_connection_or_one_error() -> None:
    client: WaitingClient[psycopg.Connection] = WaitingClient()
    assert all(hasattr(client, name) for name in OF_CLIENTS)
    assert client.fail(ValueError())
    assert not client.fail(ValueError())


def test_the_timer_runs_tasks_through_the_pool() -> None:
    """`Scheduler` calls `task.tick`, which calls `pool.run_task`: ours runs it there and then."""
    assert issubclass(ShrinkPool, MaintenanceTask)
    assert "run_task" in inspect.getsource(MaintenanceTask.tick)
    assert "_shrink_pool" in inspect.getsource(ShrinkPool._run)
    assert {"enter", "run"} <= set(vars(Scheduler))
