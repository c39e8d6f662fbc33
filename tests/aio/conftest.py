"""An alias with a pool, and what is checked after each use of it by tasks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_django.plugin import DjangoDbBlocker

from tests.support.databases import Database
from tests.support.servers import Server


@pytest.fixture
def database(shared: Server, django_db_blocker: DjangoDbBlocker) -> Iterator[Database]:
    database = Database(shared)
    with django_db_blocker.unblock():
        yield database
        database.remove()
