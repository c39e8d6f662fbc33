"""Connections past the pool with the engine's parameters: async code, libraries, dbshell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest
from django.db import connections

from tests.support.databases import ALIAS, Database, ask
from tests.support.servers import PASSWORD_OVER_TCP, Server

pytestmark = pytest.mark.server(hba=PASSWORD_OVER_TCP, roles=["app LOGIN PASSWORD 'now'"])

asked: list[Mapping[str, Any]] = []


def provide(params: Mapping[str, Any]) -> str:
    asked.append(params)
    return "now"


@pytest.fixture
def database(shared: Server, unblocked: None) -> Iterator[Database]:
    database = Database(shared)
    database(
        HOST="127.0.0.1",
        USER="app",
        PASSWORD="",
        OPTIONS={"pool": {"min_size": 1, "max_size": 2, "timeout": 5}},
        ABS_ORM_APP={"password_provider": f"{__name__}.provide"},
    )
    asked.clear()
    yield database
    database.remove()


def test_an_async_connection_gets_the_password_of_the_provider(database: Database) -> None:
    async def who() -> Any:
        parameters = connections[ALIAS].get_connection_params()
        async with await psycopg.AsyncConnection.connect(
            **{**parameters, "cursor_factory": psycopg.AsyncCursor}
        ) as connection:
            return await (await connection.execute("select current_user")).fetchone()

    assert asyncio.run(who()) == ("app",)
    assert asked[0]["user"] == "app"
    assert "password" not in asked[0]


def test_a_checkout_asks_for_no_password(database: Database) -> None:
    ask(connections[ALIAS])
    opened = len(asked)
    for _ in range(5):
        connections[ALIAS].close()
        ask(connections[ALIAS])
    assert opened >= 1
    assert len(asked) == opened


def test_dbshell_gets_the_password_of_the_provider(database: Database) -> None:
    wrapper = connections[ALIAS]
    arguments, environ = wrapper.client.settings_to_cmd_args_env(wrapper.settings_dict, [])
    assert environ is not None
    assert environ["PGPASSWORD"] == "now"
    assert "now" not in arguments
    assert (asked[0]["host"], asked[0]["user"]) == ("127.0.0.1", "app")
