"""`check_pool` on terminals of any width and encoding, and its help and arguments."""

from __future__ import annotations

from io import BytesIO, TextIOWrapper

import pytest
from django.core.management import call_command
from django.test import override_settings

from abs_orm_app.console.layout import terminal_width
from abs_orm_app.environment import database_from_env
from tests.support.projects import POOL, Ran, database, entry, manage, of_environment
from tests.support.servers import Server

pytestmark = [
    pytest.mark.usefixtures("unblocked"),
    pytest.mark.server({"max_connections": "50"}, sql=["CREATE DATABASE données"]),
]


# Width


@pytest.mark.parametrize(("columns", "width"), [("20", 60), ("60", 60), ("72", 72), ("300", 100)])
def test_the_width_is_that_of_the_terminal_from_60_to_100(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_width() == width


@pytest.mark.parametrize("columns", [60, 72, 100])
def test_no_line_of_prose_is_wider_and_wide_terminals_are_used(
    shared: Server, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("DB_POOL_PROCESSES", "100")
    with (
        database(entry(shared.tcp_conninfo, OPTIONS=POOL)) as alias,
        override_settings(DEBUG=False),
    ):
        out = Ran("--compare", "fullon_orm", database=[alias]).out
    prose = [line for line in out.splitlines() if not line.startswith(" " * 8)]  # lines to copy
    assert columns - 15 < max(map(len, prose)) <= columns


# Encoding


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_can_be_written(shared: Server, encoding: str) -> None:
    url = shared.tcp_url.removesuffix("postgres") + "donn%C3%A9es"
    environ = {"DATABASE_URL": url, "DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": "0"}
    with database(database_from_env(environ=environ)) as alias:
        for arguments in ((), ("--explain", "wrong-credentials")):
            written = BytesIO()
            out = TextIOWrapper(written, encoding, errors="strict")
            call_command("check_pool", *arguments, database=[alias], stdout=out)
            out.flush()
            assert written.getvalue().decode(encoding)


def test_a_terminal_without_unicode_gets_ascii_signs(shared: Server) -> None:
    done = manage("check_pool", DATABASE_URL=shared.url, PYTHONIOENCODING="ascii")
    assert "+ Server" in done.stdout


# What is shown


def test_the_connections_in_use_are_shown_with_their_share(shared: Server) -> None:
    with database(entry(shared.conninfo)) as alias:
        out = Ran(database=[alias]).out
    assert "in use     0 of 50, 0%" in out


def test_a_finding_has_a_line_to_copy_on_a_line_of_its_own(shared: Server) -> None:
    out = of_environment("--processes", "5", DATABASE_URL=shared.url).out
    assert "\n    Fix: Run fewer processes" in out
    assert "DB_POOL_SIZE=10 DB_MAX_OVERFLOW=0" in [row.strip() for row in out.splitlines()]


# Arguments


@pytest.fixture(scope="module")
def help_text() -> str:
    return manage("check_pool", "--help").stdout


def test_the_help_has_groups_and_examples(help_text: str) -> None:
    groups = ("what to look at", "what else to check", "how large the pools should be", "output")
    assert [name for name in groups if f"\n{name}" not in help_text] == []
    examples = help_text.partition("\nexamples:\n")[2].partition("\n\n")[0]
    assert len(examples.splitlines()) == 5
    assert all(row.startswith("  manage.py check_pool") for row in examples.splitlines())


def test_the_examples_of_the_help_are_valid(shared: Server, help_text: str) -> None:
    rows = help_text.partition("\nexamples:\n")[2].partition("\n\n")[0].splitlines()
    for row in rows:
        arguments = row.split("  ")[1].split()[2:]
        with override_settings(DEBUG=True):  # as in the sample project
            assert of_environment(*arguments, DATABASE_URL=shared.url).code == 0
