"""The verdict: the last line, the exit code and the JSON say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.test import override_settings

from abs_orm_app.config.variables import SCHEMA
from tests.support.projects import (
    OURS,
    POOL,
    SQLITE,
    STOCK,
    Ran,
    database,
    entry,
    manage,
    of_environment,
)
from tests.support.servers import PASSWORD_OVER_TCP, Server

pytestmark = [
    pytest.mark.usefixtures("unblocked"),
    pytest.mark.server(
        {"max_connections": "50"}, hba=PASSWORD_OVER_TCP, roles=["app LOGIN PASSWORD 'right'"]
    ),
]

DOWN = "host=127.0.0.1 port=1 user=x dbname=x"


def agree(text: Ran, document: Ran) -> str:
    """The verdict of a run; fails if its parts contradict each other."""
    summary = text.last
    assert summary.startswith("OK: " if text.code == 0 else "FAILED: ")
    assert document.code == text.code == document.json["exit_code"]
    assert document.json["ok"] is (text.code == 0)
    assert document.json["summary"] == summary
    assert bool(document.json["problems"]) is (text.code == 1)
    assert ("✗ Problems" in text.out) is (text.code == 1)
    return summary


def both(*arguments: str, **options: object) -> str:
    text = Ran(*arguments, **options)
    return agree(text, Ran(*arguments, format="json", **options))


def test_a_database_that_works_is_ok(shared: Server) -> None:
    with database(entry(shared.conninfo, OPTIONS=POOL)) as alias:
        assert both(database=[alias]) == "OK: other can be used."


def test_warnings_are_counted_where_all_is_well(shared: Server) -> None:
    with database(entry(shared.conninfo)) as alias, override_settings(DEBUG=False):
        assert both(database=[alias]) == "OK: other can be used, but no pool is in use; 1 warning."


def test_databases_that_cannot_be_used_are_counted_and_named_with_a_fix(shared: Server) -> None:
    wrong = f"{shared.tcp_conninfo} user=app"
    with (
        database(entry(shared.conninfo, OPTIONS=POOL)) as one,
        database(entry(DOWN, OPTIONS=POOL), alias="down") as two,
        database(entry(wrong, OPTIONS=POOL, PASSWORD="wrong"), alias="denied") as three,
    ):
        names = ["--database", one, two, three]
        assert both(*names) == "FAILED: 2 of 3 databases cannot be used."
        out = Ran(*names).out
    said = " ".join(out[out.index("✗ Problems") :].split())
    assert re.search(r"down: .*Connection refused\. Fix: ", said)
    assert re.search(r"denied: .*password authentication failed .*\. Fix: ", said)
    assert "None." not in out


def test_a_finding_of_the_fail_level_fails(shared: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_POOL_PROCESSES", "100")
    with database(entry(shared.conninfo, OPTIONS=POOL)) as alias:
        assert both(database=[alias]) == "FAILED: 1 finding of level ERROR or above."


def test_a_broken_drill_fails(shared: Server) -> None:
    options = {"pool": {"min_size": 1, "max_size": 2, "timeout": 0.2}}
    with database(entry(shared.conninfo, STOCK, OPTIONS=options)) as alias:
        ran = Ran("--drill", database=[alias])
    assert ran.code == 1
    assert ran.last == "FAILED: the drill did not prove every promise."
    assert re.search(r"other: \d promises broken: explanation, ", " ".join(ran.out.split()))


def test_a_refused_drill_fails_with_its_cause(shared: Server) -> None:
    held = [psycopg.connect(shared.conninfo) for _ in range(30)]
    with database(entry(shared.conninfo, OPTIONS=POOL)) as alias:
        summary = both("--drill", database=[alias])
    for connection in held:
        connection.close()
    assert summary == "FAILED: the drill did not prove every promise."


def test_a_difference_from_the_profile_fails(shared: Server) -> None:
    with database(entry(shared.conninfo)) as alias:
        summary = both(database=[alias], compare="fullon_orm")
        out = Ran(database=[alias], compare="fullon_orm").out
    assert summary == "FAILED: the settings differ from fullon_orm."
    assert "there is no pool here (mode null)." in " ".join(out.split())
    assert "Fix: Turn the pool on, or use another profile:" in " ".join(out.split())
    ran = of_environment("--compare=fullon_orm", DATABASE_URL=shared.url, DB_POOL_SIZE="9")
    assert ran.code == 1
    assert "other differs from fullon_orm in DB_POOL_SIZE." in ran.out
    assert "Fix: Set DB_POOL_SIZE to 20; or use another profile." in " ".join(ran.out.split())
    with database(SQLITE) as alias:
        assert both(database=[alias], compare="fullon_orm").startswith("FAILED: ")


def test_empty_databases_are_said_to_be_empty() -> None:
    with database({}, "empty"):
        summary = both(database=["empty"])
        out = Ran(database=["empty"]).out
    assert summary == "FAILED: 1 of 1 database cannot be used."
    assert "DATABASES['empty'] is empty: no database is set." in out
    assert 'DATABASES = {"default": database_from_env()}' in out


def test_what_is_not_checked_while_debug_is_on_is_named(shared: Server) -> None:
    with database(entry(shared.conninfo, OPTIONS=POOL)) as alias:
        with override_settings(DEBUG=True):
            said = " ".join(Ran(database=[alias]).out.split())
        with override_settings(DEBUG=False):
            assert "Not checked" not in Ran(database=[alias]).out
    assert "Not checked: while DEBUG is on, the rules for production" in said


def test_a_server_that_does_not_answer_leaves_rules_unchecked() -> None:
    with database(entry(DOWN, OPTIONS=POOL)) as alias:
        said = " ".join(Ran(database=[alias]).out.split())
    assert "Not checked: the rules on the server of other" in said


def test_a_wrong_password_in_a_whole_process(shared: Server) -> None:
    url = f"postgresql://app:wrong@127.0.0.1:{shared.port}/postgres"
    done = manage("check_pool", DATABASE_URL=url)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "FAILED: 1 of 1 database cannot be used."


@pytest.mark.parametrize("arguments", [("--format", "json"), ("--format=json", "--drill")])
def test_settings_that_cannot_be_used_give_json_too(arguments: tuple[str, ...]) -> None:
    done = manage("check_pool", *arguments, DB_POOL_SIZE="abc", DB_POOL_PRE_PING="ture")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert {key: document[key] for key in ("schema", "ok", "exit_code", "summary")} == {
        "schema": SCHEMA,
        "ok": False,
        "exit_code": 1,
        "summary": "FAILED: the settings cannot be used.",
    }
    assert "DB_POOL_SIZE='abc' is not a whole number" in document["error"]
    assert "DB_POOL_PRE_PING='ture'" in document["error"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("databases", "said"),
    [
        ({"default": {"ENGINE": wrong}}, f"There is no ENGINE {wrong!r}, only {OURS!r}")
        for wrong in ("abs_orm_app", "abs_orm_app.backends.postgres", f"{OURS}.base")
    ]
    + [({"ENGINE": OURS, "NAME": "x"}, "DATABASES is an entry; it must be ")],
)
def test_what_stops_django_at_the_first_model_is_a_line_and_no_traceback(
    databases: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """It loads the engine then, before it knows any command."""
    (tmp_path / "wrong.py").write_text(
        "INSTALLED_APPS = ['django.contrib.contenttypes', 'abs_orm_app']\n"
        f"DATABASES = {databases!r}\n"
    )
    done = manage("check_pool", "--settings=wrong", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith(f"SettingsError: {said}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == "FAILED: the settings cannot be used.\n"


@pytest.mark.parametrize("databases", [{}, {"default": {}}, {"default": {"ENGINE": None}}])
def test_a_project_without_a_default_database_starts(
    databases: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "none.py").write_text(
        f"SECRET_KEY, INSTALLED_APPS = 'x', ['abs_orm_app']\nDATABASES = {databases!r}\n"
    )
    done = manage("check", "--settings=none", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
