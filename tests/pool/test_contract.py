"""What the project uses of psycopg that is not documented still exists.

When one of these tests fails after an upgrade, read what changed in psycopg at that name first.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import timeout_from_conninfo

import abs_orm_app
from abs_orm_app.pool.entry import ENTRY
from abs_orm_app.pool.pool import HardenedPool
from tests.support.servers import Server

APP = Path(abs_orm_app.__file__).parent
MODULES = sorted(APP.rglob("*.py"))

# The pool of a connection: Django's engine returns a connection through it, and `with conn` does
# not close one that has it. How many blocks of `transaction()` are open: `pool/spoiled.py`.
OF_CONNECTIONS = {"_num_transactions", "_pool"}
# What a project may have changed of a connection whose handle it asked for, and what has no public
# name to set it back: `backends/cleaning.py`.
OF_CLEANING = {"_adapters", "_notice_handlers", "_notify_handlers", "_prepared"}
# What an async connection has in common with the one whose handle it is plugged into, and what can
# only be awaited otherwise: `backends/async_connection.py`.
OF_PLUGGING = {"_autocommit", "_isolation_level"}
# psycopg_pool's parameters that mean something else here, or have another default.
OTHER_DEFAULTS = {"open", "num_workers"}


@pytest.fixture
def conn(shared: Server) -> Iterator[psycopg.Connection]:
    with psycopg.connect(shared.conninfo) as conn:
        yield conn


def test_a_block_ends_in_a_generator() -> None:
    """Which `pool/spoiled.py` watches."""
    for block in (psycopg.Transaction, psycopg.AsyncTransaction):
        assert list(inspect.signature(block._commit_gen).parameters) == ["self"]
        assert list(inspect.signature(block._rollback_gen).parameters) == ["self", "exc_val"]
        assert inspect.isgeneratorfunction(block._commit_gen)
        assert inspect.isgeneratorfunction(block._rollback_gen)


def test_a_statement_starts_in_a_generator() -> None:
    """Which `backends/cursors.py` watches; each kind of statement calls it."""
    start = psycopg.Cursor._start_query
    assert list(inspect.signature(start).parameters) == ["self", "query"]
    for kind in ("_execute_gen", "_stream_send_gen", "_start_copy_gen"):
        body = inspect.getsource(getattr(psycopg.Cursor, kind))
        assert "yield from self._start_query(" in body, kind


def test_no_other_private_name_of_a_connection_is_used() -> None:
    source = inspect.getsource(psycopg.connection) + inspect.getsource(psycopg._connection_base)
    theirs = set(re.findall(r"self\.(_[a-z]\w*)", source))
    used = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in (
                "conn",
                "connection",
            ):
                used.add(node.attr)
    assert used & theirs == OF_CONNECTIONS | OF_CLEANING | OF_PLUGGING


@pytest.mark.parametrize("name", ["leasing", "lease", "cursors", "handle"])
def test_no_request_executes_an_import(name: str) -> None:
    """If another thread interrupts an import, its lock stays locked, for all threads."""
    tree = ast.parse((APP / "backends" / f"{name}.py").read_text())
    functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)]
    inside = [each for function in functions for each in ast.walk(function)]
    assert functions
    assert not [each.lineno for each in inside if isinstance(each, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(APP)))
def test_only_public_names_of_psycopg_pool_are_imported(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("psycopg_pool"):
            assert node.module == "psycopg_pool"
            assert {name.name for name in node.names} <= set(psycopg_pool.__all__)
        if isinstance(node, ast.Import):
            assert all(not name.name.startswith("psycopg_pool.") for name in node.names)


def test_a_connection_takes_an_attribute(conn: psycopg.Connection) -> None:
    setattr(conn, ENTRY, 1)
    assert getattr(conn, ENTRY) == 1
    delattr(conn, ENTRY)


def test_a_connection_of_a_pool_is_not_closed_by_with(conn: psycopg.Connection) -> None:
    conn._pool = object()  # type: ignore[assignment]
    with conn:
        pass
    assert not conn.closed
    conn._pool = None


def test_the_timeout_of_an_address_is_read() -> None:
    assert timeout_from_conninfo({"connect_timeout": "7"}) == 7
    assert timeout_from_conninfo({}) > 0


def test_the_parameters_are_psycopg_pools() -> None:
    theirs = inspect.signature(psycopg_pool.ConnectionPool).parameters
    ours = inspect.signature(HardenedPool).parameters
    assert set(theirs) <= set(ours)
    for name in set(theirs) - OTHER_DEFAULTS:
        assert ours[name].default == theirs[name].default, name


def test_the_public_names_are_psycopg_pools() -> None:
    # For tasks in psycopg_pool's worker threads, which our pool does not have.
    tasks = {"run_task", "schedule_task", "worker"}
    public = {name for name in dir(psycopg_pool.ConnectionPool) if not name.startswith("_")}
    assert public - tasks <= set(dir(HardenedPool))


def test_the_statistics_are_psycopg_pools() -> None:
    base = psycopg_pool.base.BasePool
    theirs = {value for name, value in vars(base).items() if name.isupper() and name[0] == "_"}
    pool = HardenedPool("host=/nowhere")
    known = {*pool.statistics._totals(), *pool.get_stats()}
    assert {name for name in theirs if isinstance(name, str)} <= known


def test_a_pool_that_was_never_opened_starts_no_thread() -> None:
    before = psutil.Process().num_threads()
    HardenedPool("host=/nowhere").close()
    assert psutil.Process().num_threads() <= before  # others may end meanwhile
