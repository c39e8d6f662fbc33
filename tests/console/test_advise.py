"""`check_pool --processes` and `--advise`: what fits, and how large the pools should be."""

from __future__ import annotations

import json
import re
from io import StringIO
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command

from tests.support.projects import ROOT, SQLITE, database, entry, manage
from tests.support.servers import Server

pytestmark = [
    pytest.mark.usefixtures("unblocked"),
    pytest.mark.server(
        {"max_connections": "100", "superuser_reserved_connections": "3"}, roles=["app LOGIN"]
    ),
]

POOL = {"pool": {"min_size": 20, "max_size": 30}}
ASKED = ("--advise", "--rps", "400", "--query-ms", "20")


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


def test_pools_that_do_not_fit_exit_with_1(shared: Server) -> None:
    with database(app(shared)) as alias:
        out, code = run(alias, "--processes", "8")
    assert "It does not fit, not even without overflow." in one_line(out)
    assert "DB_POOL_SIZE=12 DB_MAX_OVERFLOW=0" in out
    assert "E021" in out
    assert code == 1


def test_more_processes_than_connections_have_no_setting_that_fits(shared: Server) -> None:
    with database(app(shared)) as alias:
        out, _ = run(alias, "--processes", "98")
    assert "There is less than one connection for each pool." in one_line(out)


def test_pools_that_fit_are_said_to_fit(shared: Server) -> None:
    with database(app(shared)) as alias:
        out, code = run(alias, "--processes", "2")
    assert "It fits." in out
    assert code == 0


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
    assert "Whether the server has room for these pools is unknown" in one_line(out)
    assert code == 1


# The advice


def test_advice_names_the_pools_and_whether_they_fit(shared: Server) -> None:
    with database(app(shared)) as alias:
        out, code = run(alias, *ASKED, "--processes", "4")
    said = one_line(out)
    assert "DB_POOL_SIZE=6 DB_MAX_OVERFLOW=3" in said
    assert "a larger pool would not help" in said
    assert "It fits: 4 processes x (6 + 3) for 'other' = 36 connections" in said
    assert "8 connections are busy on average" in said
    assert code == 0


@pytest.mark.parametrize("age", [0, None])
def test_advice_without_a_pool_says_whether_one_would_fit(shared: Server, age: int | None) -> None:
    with database(app(shared, OPTIONS={"pool": None}, CONN_MAX_AGE=age)) as alias:
        out, code = run(alias, *ASKED, "--processes", "4")
    assert "It fits: 4 processes x (6 + 3) for 'other' = 36 connections" in one_line(out)
    assert code == 0


def test_the_sample_project_is_advised(shared: Server) -> None:
    done = manage("check_pool", *ASKED, DATABASE_URL=shared.url)
    assert done.returncode == 0, done.stderr
    assert "DB_POOL_SIZE=14 DB_MAX_OVERFLOW=10" in done.stdout


def test_budget_and_advice_are_in_the_json_and_documented(shared: Server) -> None:
    with database(app(shared)) as alias:
        out, _ = run(alias, *ASKED, "--processes", "4", "--format", "json")
        plain, _ = run(alias, "--format", "json")
    document = json.loads(out)
    assert (json.loads(plain)["fleet"], json.loads(plain)["advice"]) == (None, None)
    [fleet] = document["fleet"]
    assert (fleet["at_rest"], fleet["at_peak"], fleet["allowed"]) == (80, 120, 97)
    assert (fleet["fits"], fleet["largest"][0]["overflow"]) == (False, 4)
    advice = document["advice"]
    assert (advice["size"], advice["overflow"], advice["configured"]["connections"]) == (6, 3, 30)
    page = (ROOT / "docs" / "check_pool_json.md").read_text()
    keys = {*fleet, *advice, *advice["waits"][0], *fleet["pools"][0]}
    assert [key for key in keys if f"`{key}`" not in page] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--advise",), "--advise needs --rps"),
        (("--advise", "--rps", "400"), "--explain where-to-read-the-two-numbers` says where"),
        (("--rps", "400"), "need --advise"),
        (("--advise", "--rps", "1e9", "--query-ms", "1e6"), "cannot have more than 262,143"),
        (("--advise", "--rps", "0", "--query-ms", "20"), "--rps: '0' is not a number above 0"),
        (("--advise", "--rps", "-5", "--query-ms", "20"), "'-5' is not a number above 0"),
        (("--advise", "--rps", "nan", "--query-ms", "20"), "'nan' is not a number above 0"),
        (("--advise", "--rps", "4", "--query-ms", "x"), "--query-ms: 'x' is not a number above 0"),
        ((*ASKED, "--target-wait-ms", "-1"), "'-1' is not a number from 0"),
        (("--processes", "0"), "--processes: '0' is not a whole number from 1 to 262143"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError, match=re.escape(said)) as raised:
        run("default", *arguments)
    assert "Traceback" not in str(raised.value)


def test_bad_arguments_exit_with_2() -> None:
    for arguments in (("--advise",), ("--processes", "many")):
        done = manage("check_pool", *arguments, DATABASE_URL="postgresql://127.0.0.1:1/x")
        assert (done.returncode, done.stdout) == (2, "")


def test_advice_is_for_one_alias(shared: Server) -> None:
    with database(app(shared)) as alias, pytest.raises(CommandError, match="name it with --data"):
        call_command("check_pool", *ASKED)
    with (
        database(SQLITE) as alias,
        pytest.raises(CommandError, match="no alias here is PostgreSQL"),
    ):
        run(alias, *ASKED)
