"""A server cannot command the terminal, forge a line of the log, or write HTML into the page."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from django.db import connections

from abs_orm_app.facts.failure import failure_of
from tests.console.test_no_secret_in_output import printed
from tests.support.hostile import HOSTILE, Hostile, hostile_server
from tests.support.projects import database, entry

pytestmark = pytest.mark.usefixtures("unblocked")

ALIAS = "hostile"
COMMANDS = (
    ("check_pool", "--database", ALIAS, "-v", "2"),
    ("check_pool", "--database", ALIAS, "--format", "json"),
    ("check_pool", "--database", ALIAS, "--drill"),
    ("check_pool", "--database", ALIAS, "--rps", "10", "--hold-ms", "0.1"),
    ("check", "--database", ALIAS, "--deploy"),
    ("pgbouncer_ini", "--database", ALIAS),
)


def commands(text: str) -> list[str]:
    """The characters in a text that a terminal obeys, or that begin a new line elsewhere."""
    return [char for char in text if not char.isprintable() and char not in "\n\t"]


@pytest.fixture(params=[False, True], ids=["at login", "at each statement"])
def hostile(request: pytest.FixtureRequest) -> Iterator[Hostile]:
    with hostile_server(accepts=request.param) as server:
        address = f"host=127.0.0.1 port={server.port} user=app dbname=postgres"
        pool = {"min_size": 1, "max_size": 1, "timeout": 1.0}
        with database(entry(address, OPTIONS={"connect_timeout": 5, "pool": pool}), ALIAS):
            yield server


def test_the_text_has_what_harms() -> None:
    assert {"\x1b", "\r", "\x9b", "\x85", "\u2028", "\u202e"} <= set(commands(HOSTILE))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_prints_what_a_terminal_obeys(
    hostile: Hostile, command: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "abs_orm_app"):
        text = printed(*command)
    assert text
    assert commands(text) == []
    if "json" in command:
        assert json.loads(text)["ok"] is False
    for record in caplog.records:
        assert commands(record.getMessage()) == []
        assert "\n" not in record.getMessage() or record.name == "psycopg"


def test_no_line_of_the_log_and_no_timeout_has_it(
    hostile: Hostile, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "abs_orm_app.pool"), pytest.raises(Exception) as error:  # noqa: PT011
        connections[ALIAS].cursor().execute("select 1")
    assert commands(failure_of(error.value).cause) == []
    if type(error.value.__cause__).__name__ == "PoolTimeout":
        assert commands(str(error.value)) == []
    if not hostile.accepts:
        assert "owned" in caplog.text  # the pool does say what the server said
    for record in caplog.records:
        assert commands(record.getMessage()) == []
        assert "\n" not in record.getMessage()
