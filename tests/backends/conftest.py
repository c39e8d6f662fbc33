"""Aliases on the engine; each test of the engine runs in both modes of `release`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_django.plugin import DjangoDbBlocker

from tests.support.databases import MODES, Database
from tests.support.servers import Server


@pytest.fixture(params=MODES)
def release(request: pytest.FixtureRequest) -> str:
    """When a connection goes back to the pool: DB_POOL_RELEASE."""
    mode: str = request.param
    return mode


@pytest.fixture
def database(
    shared: Server, django_db_blocker: DjangoDbBlocker, release: str
) -> Iterator[Database]:
    database = Database(shared, release)
    with django_db_blocker.unblock():
        yield database
        database.remove()
