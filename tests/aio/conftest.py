"""An alias with a pool, and what is checked after each use of it by tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from inspect import iscoroutinefunction
from typing import Any

import pytest
from pytest_django.plugin import DjangoDbBlocker

from tests.support.databases import ONE, Database
from tests.support.servers import Server, wait_until


@pytest.fixture
def database(shared: Server, django_db_blocker: DjangoDbBlocker) -> Iterator[Database]:
    database = Database(shared)
    with django_db_blocker.unblock():
        yield database
        database.remove()


def check_whole(wrapper: Any) -> None:
    """All connections are idle, and none is missing."""
    core = wrapper.pool.core
    wait_until(
        lambda: not core.in_use and len(core.idle) == len(core.entries) >= core.min_size,
        "all connections to be idle",
    )


@pytest.fixture
def wrapper(database: Database) -> Iterator[Any]:
    """That of an alias with one connection, which is back at the end."""
    wrapper: Any = database(OPTIONS=ONE)
    yield wrapper
    wrapper.close()
    check_whole(wrapper)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine."""
    if not iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    asyncio.run(asyncio.wait_for(test, 60))
    return True
