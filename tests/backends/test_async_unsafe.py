"""In async code, nothing of a wrapper connects or queries there, as with Django's own engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections, transaction

from tests.support.databases import ALIAS, Database, ask
from tests.support.projects import OURS, STOCK

CALLS: dict[str, Callable[[Any], Any]] = {
    "connect": lambda wrapper: wrapper.connect(),
    "ensure_connection": lambda wrapper: wrapper.ensure_connection(),
    "cursor": lambda wrapper: wrapper.cursor(),
    "chunked_cursor": lambda wrapper: wrapper.chunked_cursor(),
    "create_cursor": lambda wrapper: wrapper.create_cursor(),
    "get_autocommit": lambda wrapper: wrapper.get_autocommit(),
    "set_autocommit(True)": lambda wrapper: wrapper.set_autocommit(True),
    "set_autocommit(False)": lambda wrapper: wrapper.set_autocommit(False),
    "commit": lambda wrapper: wrapper.commit(),
    "rollback": lambda wrapper: wrapper.rollback(),
    "savepoint": lambda wrapper: wrapper.savepoint(),
    "on_commit": lambda wrapper: wrapper.on_commit(print),
    "atomic": lambda _: transaction.atomic(ALIAS).__enter__(),
    "close": lambda wrapper: wrapper.close(),
}


@pytest.fixture(params=[STOCK, OURS], ids=["stock", "ours"])
def wrapper(database: Database, request: pytest.FixtureRequest) -> Any:
    return database(ENGINE=request.param)


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("same", [False, True])  # as with asgiref 3.8, and if code hands it on
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_it_is_refused_as_by_djangos_engine(
    wrapper: Any, call: Callable[[Any], Any], connected: bool, same: bool
) -> None:
    """A query in the same thread, before the loop runs, may have connected the wrapper."""
    ask(wrapper)
    if not connected:
        wrapper.close()

    async def code() -> None:
        with pytest.raises(SynchronousOnlyOperation):
            call(wrapper if same else connections[ALIAS])

    asyncio.run(code())
    assert wrapper.autocommit
    assert not wrapper.in_atomic_block
    wrapper.close()
