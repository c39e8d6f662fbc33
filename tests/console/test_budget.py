"""`check_pool --processes` and `--rps`: what fits, and the pool for a load."""

from __future__ import annotations

import json
import re
from io import StringIO
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command

from tests.support.projects import SQLITE, database, entry, manage
from tests.support.servers import Server

pytestmark = [
    pytest.mark.usefixtures("unblocked"),
    pytest.mark.server(
        {"max_connections": "100", "superuser_reserved_connections": "3"}, roles=["app LOGIN"]
    ),
]

POOL = {"pool": {"min_size": 20, "max_size": 30}}
ASKED = ("--rps", "400", "--hold-ms", "20")


def run(alias: str, *arguments: str) -> tuple[str, int]:
    """What the command prints, in one line, and its exit code."""
    out, code = StringIO(), 0
    try:
        call_command("check_pool", "--database", alias, *arguments, stdout=out, no_color=True)
    except SystemExit as end:
        code = int(end.code or 0)
    assert max(map(len, out.getvalue().splitlines())) <= 80 or "{" in out.getvalue()
    return out.getvalue(), code


def one_line(text: str) -> str:
    return " ".join(text.split())


def cells(text: str, start: str) -> list[str]:
    """The numbers in the row that begins so."""
    row = next(row for row in text.splitlines() if row.strip().startswith(start))
    return re.findall(r" {2,}(-?\d+)", row.partition(start)[2])


def app(server: Server, **more: Any) -> dict[str, Any]:
    options = {"application_name": "shop", **POOL, **more.pop("OPTIONS", {})}
    return entry(f"{server.conninfo} user=app", OPTIONS=options, **more)


# The budget


def test_the_budget_of_a_fleet_is_shown_beside_what_others_have(shared: Server) -> None:
    held = [psycopg.connect(shared.conninfo, application_name="psql") for _ in range(2)]
    held.append(psycopg.connect(f"{shared.conninfo} user=app", application_name="shop@web:1"))
    with database(app(shared)) as alias:
        out, code = run(alias, "--processes", "4")
    for connection in held:
        connection.close()
    assert cells(out, "other: 4 x (20 + 10)") == ["80", "120"]
    assert cells(out, "other applications now") == ["2", "2"]
    assert cells(out, "together") == ["82", "122"]
    assert cells(out, "left of 97") == ["15", "-25"]
    assert (
        "It fits in normal use, but not if all processes use their overflow. The largest pools that"
        " fit: DB_POOL_SIZE=20 DB_MAX_OVERFLOW=3 for 'other'. Or run 3 processes with the current"
        " sizes."
    ) in one_line(out)
    assert "W021" in out
    assert code == 0


@pytest.mark.parametrize(
    ("processes", "code", "said"),
    [
        ("2", 0, ["It fits."]),
        ("8", 1, ["It does not fit, not even without overflow.", "DB_POOL_SIZE=12 ", "E021"]),
        ("98", 1, ["There is less than one connection for each pool."]),
    ],
)
def test_pools_that_do_not_fit_exit_with_1(
    shared: Server, processes: str, code: int, said: list[str]
) -> None:
    with database(app(shared)) as alias:
        out, ended = run(alias, "--processes", processes)
    assert [words for words in said if words not in one_line(out)] == []
    assert ended == code


def test_the_processes_of_the_environment_show_the_budget_too(
    shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database(app(shared)) as alias:
        assert "Connection budget" not in run(alias)[0]
        monkeypatch.setenv("DB_POOL_PROCESSES", "3")
        assert "3 x (20 + 10)" in run(alias)[0]
        assert "2 x (20 + 10)" in run(alias, "--processes", "2")[0]


def test_aliases_on_one_server_share_the_budget(shared: Server) -> None:
    with database(app(shared)) as one, database(app(shared), alias="reports") as two:
        out, _ = run(one, "--database", two, "--processes", "1")
    assert cells(out, "together") == ["40", "60"]


def test_a_server_that_is_down_has_no_budget() -> None:
    with database(entry("host=127.0.0.1 port=1 user=x dbname=x", OPTIONS=POOL)) as alias:
        out, code = run(alias, "--processes", "2", *ASKED)
    assert "Unknown: no server answered" in out
    assert "DB_POOL_SIZE=8 DB_MAX_OVERFLOW=6 in 2 processes." in one_line(out)
    assert code == 1


# The pool for a load


def test_a_load_adds_one_line_with_the_pool_that_it_needs(shared: Server) -> None:
    with database(app(shared)) as alias:
        out, code = run(alias, *ASKED, "--processes", "4")
    assert (
        "400 requests per second x 20 ms = 8 busy connections: DB_POOL_SIZE=5 DB_MAX_OVERFLOW=3"
        " in 4 processes; the server has room for 12 of them."
    ) in one_line(out)
    assert code == 0


def test_a_large_load_is_printed_in_all_its_digits(shared: Server) -> None:
    with database(app(shared)) as alias:
        out, _ = run(alias, "--rps", "2000000", "--hold-ms", "40")
    assert "2000000 requests per second x 40 ms = 80000 busy connections" in one_line(out)


@pytest.mark.parametrize("age", [0, None])
def test_a_load_is_sized_without_a_pool_too(shared: Server, age: int | None) -> None:
    with database(app(shared, OPTIONS={"pool": None}, CONN_MAX_AGE=age)) as alias:
        out, code = run(alias, *ASKED, "--processes", "4")
    assert "DB_POOL_SIZE=5 DB_MAX_OVERFLOW=3 in 4 processes" in one_line(out)
    assert code == 0


def test_the_load_of_the_sample_project_is_that_of_one_process(shared: Server) -> None:
    done = manage("check_pool", *ASKED, DATABASE_URL=shared.url)
    assert done.returncode == 0, done.stderr
    assert "DB_POOL_SIZE=14 DB_MAX_OVERFLOW=10 in 1 process;" in one_line(done.stdout)


def test_budget_and_load_are_in_the_json(shared: Server) -> None:
    with database(app(shared)) as alias:
        out, _ = run(alias, *ASKED, "--processes", "4", "--format", "json")
        plain, _ = run(alias, "--format", "json")
    document = json.loads(out)
    assert (json.loads(plain)["fleet"], json.loads(plain)["load"]) == (None, None)
    [fleet] = document["fleet"]
    assert (fleet["at_rest"], fleet["at_peak"], fleet["limit"]["connections"]) == (80, 120, 97)
    assert (fleet["fits"], fleet["largest"][0]["overflow"]) == (False, 4)
    load = document["load"]
    assert (load["busy"], load["size"], load["overflow"], load["fitting"]) == (8, 5, 3, 12)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rps", "400"), "belong together"),
        (("--hold-ms", "20"), "belong together"),
        (("--rps", "0", "--hold-ms", "20"), "--rps: '0' is not a number above 0"),
        (("--rps", "-5", "--hold-ms", "20"), "'-5' is not a number above 0"),
        (("--rps", "nan", "--hold-ms", "20"), "'nan' is not a number above 0"),
        (("--rps", "4", "--hold-ms", "x"), "--hold-ms: 'x' is not a number above 0"),
        (("--processes", "0"), "--processes: '0' is not a whole number from 1 to 262143"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError, match=re.escape(said)) as raised:
        run("default", *arguments)
    assert "Traceback" not in str(raised.value)


def test_a_load_is_of_one_alias(shared: Server) -> None:
    with database(app(shared)) as alias, pytest.raises(CommandError, match="name it with --data"):
        call_command("check_pool", *ASKED)
    with database(SQLITE) as alias, pytest.raises(CommandError, match="there is none here"):
        run(alias, *ASKED)
