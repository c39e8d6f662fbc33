"""The engine says itself that its app is not installed: nothing else could."""

from __future__ import annotations

import sys

import pytest

from tests.support.processes import program
from tests.support.servers import Server

QUERY = """
import threading
import django
from django.conf import settings
from abs_project import settings as sample

without = [app for app in sample.INSTALLED_APPS if app != "abs_orm_app"]
settings.configure(DATABASES=sample.DATABASES, INSTALLED_APPS={apps}, USE_TZ=True)
django.setup()

def query():
    from django.db import connection
    connection.ensure_connection()
    connection.close()

for _ in range(3):
    thread = threading.Thread(target=query)
    thread.start()
    thread.join()
"""


def errors(server: Server, apps: str, mode: str) -> str:
    with program([sys.executable, "-c", QUERY.format(apps=apps)], server, DB_POOL_MODE=mode) as it:
        result = it.wait()
    assert result.status == 0, result.errors
    return result.errors


@pytest.mark.parametrize("mode", ["pool", "null"])
def test_it_is_said_once_at_the_first_connection(shared: Server, mode: str) -> None:
    said = errors(shared, "without", mode)
    assert said.count("\n") == 1
    assert "abs_orm_app.backends.postgresql is used, but its app is not installed" in said
    assert said.endswith("add 'abs_orm_app' to INSTALLED_APPS.\n")


def test_nothing_is_said_where_it_is_installed(shared: Server) -> None:
    assert errors(shared, "sample.INSTALLED_APPS", "pool") == ""
