"""The recipe for pytest-django, in a project whose pytest.ini names the settings."""

from __future__ import annotations

import pytest

from tests.compat.cases.pytest_django import check
from tests.support.servers import Server


def test_the_recipe_turns_the_pool_off_and_tests_work_with_it_too(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", server.url)
    monkeypatch.delenv("DB_POOL_MODE")
    check()
