"""`manage.py check_pool`: what it shows, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

from abs_orm_app.console.profiles import SETTING
from abs_orm_app.environment import database_from_env
from abs_orm_app.management.commands import check_pool
from tests.support.projects import (
    OURS,
    POOL,
    ROOT,
    SQLITE,
    STOCK,
    Ran,
    database,
    entry,
    line,
    manage,
    of_environment,
)
from tests.support.replication import Standby
from tests.support.servers import ONE_CONNECTION, Server, wait_until
from tests.support.tasks import held_by_tasks

pytestmark = [pytest.mark.usefixtures("unblocked"), pytest.mark.server({"max_connections": "50"})]

SECTIONS = ["Settings", "✓ Server", "✓ Connection test", "Findings"]


# What it shows


def test_the_sections_are_shown_for_a_database_from_the_environment(shared: Server) -> None:
    done = manage("check_pool", "-v2", DATABASE_URL=shared.url, DB_MAX_OVERFLOW="5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row for row in done.stdout.splitlines() if row in SECTIONS] == SECTIONS
    assert line(done.stdout, "setting").split() == ["setting", "value", "from", "becomes"]
    assert line(done.stdout, "DB_POOL_SIZE").split()[1:] == ["20", "default", "pool.min_size"]
    assert line(done.stdout, "DB_MAX_OVERFLOW").split()[1:3] == ["5", "environment"]
    assert "may open 50" in line(done.stdout, "limit")
    for step in ("connect", "checkout", "query"):
        assert " ms " in line(done.stdout, step)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stderr == ""


def test_long_names_of_variables_make_no_line_wider_than_a_terminal(shared: Server) -> None:
    values = {"DATABASE_URL": shared.url, "DB_DISABLE_SERVER_SIDE_CURSORS": "false"}
    values |= {"DB_POOL_SIZE": "3", "DB_MAX_OVERFLOW": "4"}
    for prefix in ("", "ANALYTICS_", "ANALYTICS_REPLICA_"):
        environ = {prefix + name: value for name, value in values.items()}
        with database(database_from_env(prefix, environ=environ)) as alias:
            ran = Ran(database=[alias])
        assert max(map(len, ran.out.splitlines())) <= 80
        assert line(ran.out, f"{prefix}DB_POOL_SIZE").split()[1:3] == ["3", "environment"]
        assert "DISABLE_SERVER_SIDE_CURSORS" in [row.strip() for row in ran.out.splitlines()]


def test_a_setting_from_the_env_file_names_the_file(tmp_path: Any, shared: Server) -> None:
    file = tmp_path / "env"
    file.write_text(f"DATABASE_URL={shared.url}\nDB_POOL_SIZE=7\n")
    done = manage("check_pool", "-v2", ENV_FILE=str(file))
    assert line(done.stdout, "DB_POOL_SIZE").split()[:3] == ["DB_POOL_SIZE", "7", ".env"]
    assert line(done.stdout, "Address:").split(maxsplit=1)[1] == "DATABASE_URL (.env)"


def test_an_address_that_is_not_set_is_the_default(shared: Server) -> None:
    with database(database_from_env(environ={}, default=shared.url)) as alias:
        ran = Ran(database=[alias])
    said = line(ran.out, "Address:").split(maxsplit=1)[1]
    assert said == "the default (no address is set in the environment)"


@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_a_pool_written_by_hand_is_shown(shared: Server, engine: str) -> None:
    options = {"pool": {**POOL["pool"], "reconnect_timeout": float("inf"), "min_size": 2}}
    with database(entry(shared.conninfo, engine, OPTIONS=options)) as alias:
        ran = Ran(database=[alias], verbosity=2)
    assert ran.code == 0
    assert line(ran.out, "DB_POOL_SIZE").split()[1:] == ["2", "settings", "pool.min_size"]
    assert line(ran.out, "DB_MAX_OVERFLOW").split()[1] == "28"
    assert line(ran.out, "pool.reconnect_timeout").split()[1] == "inf"
    assert ("(Django's own)" in line(ran.out, "pool ")) == (engine == STOCK)
    assert " ms " in line(ran.out, "checkout")


def test_a_live_pool_is_shown_with_its_differences(shared: Server) -> None:
    with database(entry(shared.conninfo, OPTIONS=POOL)) as alias:
        pool: Any = connections[alias].pool  # type: ignore[attr-defined]
        pool.open()
        pool.resize(5, 30)
        text, document = Ran(database=[alias]), Ran(database=[alias], format="json")
        assert not pool.closed
    _, _, shown = text.out.partition("Pool of this process")
    assert "differs: 20 is configured" in line(shown, "DB_POOL_SIZE")
    assert "differs: 10 is configured" in line(shown, "DB_MAX_OVERFLOW")
    assert "differs" not in line(shown, "DB_POOL_TIMEOUT")
    [reported] = document.json["databases"]
    in_effect = reported["active"]["settings"]
    assert (in_effect["size"], in_effect["overflow"]) == (5, 25)
    assert reported["active"]["opened"] is True


def test_connections_that_tasks_hold_are_shown(shared: Server) -> None:
    options = {"pool": {"min_size": 1, "max_size": 1, "timeout": 20.0}}
    with (
        database(entry(shared.conninfo, OPTIONS=options)) as alias,
        held_by_tasks(alias, "BEGIN", waiting=2),
    ):
        ran = Ran(database=[alias])
    assert "1 open, 0 idle, 2 waiting" in line(ran.out, "now")
    said = " ".join(ran.out.split())
    assert "the only connection is in use, 1 of them idle in a transaction." in said


def test_check_pool_does_not_open_a_closed_pool(shared: Server) -> None:
    with database(entry(shared.conninfo, OPTIONS=POOL)) as alias:
        ran, verbose = Ran(database=[alias], verbosity=1), Ran(database=[alias])
        pool: Any = connections[alias].pool  # type: ignore[attr-defined]
        assert pool.closed
        wait_until(lambda: shared.sessions() == 0, "the sessions to end")
    assert "Pool of this process" not in ran.out, "it would only repeat the settings"
    assert "abs_orm_app.pool.HardenedPool" in line(verbose.out, "pool ")
    assert "not open yet" in line(verbose.out, "now")


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("null", "each request opens a connection"),
        ("persistent", "each thread keeps one"),
        ("pgbouncer", "PgBouncer has it"),
    ],
)
def test_an_alias_without_a_pool_says_so(shared: Server, mode: str, said: str) -> None:
    ran = of_environment(DATABASE_URL=shared.url, DB_POOL_MODE=mode)
    assert ran.code == 0
    assert said in ran.out
    assert f"not used in {mode} mode" in line(ran.out, "DB_POOL_SIZE")
    assert "checkout" not in ran.out


def test_another_database_is_named_in_one_line_and_not_tested() -> None:
    with database(SQLITE) as alias:
        ran = Ran(database=[alias])
    assert ran.code == 0
    assert "This is not PostgreSQL" in ran.out
    assert "Connection test" not in ran.out
    assert ran.last == "OK: nothing to check, no database here is PostgreSQL."


def test_it_says_whether_a_server_has_the_role_that_its_alias_needs() -> None:
    with Server() as primary, Standby(primary) as standby:

        def said(server: Server | Standby, wanted: str) -> str:
            url = f"{server.url}?target_session_attrs={wanted}"
            return line(of_environment(DATABASE_URL=url).out, "state")

        assert "primary, accepts writes, as this alias needs" in said(primary, "primary")
        assert "standby, read only, as this alias needs" in said(standby, "prefer-standby")
        assert "but this alias needs a standby" in said(primary, "prefer-standby")
        # The default alias needs a primary.
        shown = manage("check_pool", "-v2", DATABASE_URL=standby.url).stdout
        assert "standby, read only, but this alias needs a primary" in line(shown, "state")


def test_several_aliases_are_shown_one_after_the_other(shared: Server) -> None:
    with (
        database(entry(shared.conninfo)) as one,
        database(SQLITE, alias="lite") as two,
        database(entry(shared.tcp_conninfo), alias="third") as three,
    ):
        ran = Ran("--database", one, two, "--database", three)
        every = Ran()
    heads = [row.split(":")[0] for row in ran.out.splitlines() if ": " in row and row[0] != " "]
    assert heads == [one, two, three, "OK"]
    assert "default: " in every.out


@pytest.mark.server(ONE_CONNECTION, roles=["app LOGIN"])
def test_check_pool_takes_one_connection_at_a_time(server: Server) -> None:
    with database(entry(f"{server.conninfo} user=app", OPTIONS=POOL)) as alias:
        ran = Ran(database=[alias])
    assert "Failed" not in ran.out
    assert " ms " in line(ran.out, "checkout")


def test_the_findings_are_those_of_the_checks(
    shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_POOL_PROCESSES", "100")
    monkeypatch.setenv("DB_POOL_SISE", "5")
    with database(entry(shared.conninfo, OPTIONS=POOL)) as alias:
        ran = Ran(database=[alias])
        ids = ["abs_orm_app.W001", "abs_orm_app.E021"]
        with override_settings(SILENCED_SYSTEM_CHECKS=ids, DEBUG=True):
            silenced = Ran(database=[alias])
    assert ran.code == 1
    assert ran.out.index("  ERROR E021 other\n") < ran.out.index("\n\n  WARNING W001\n")
    assert "\n    manage.py check_pool --explain E021\n" in ran.out
    assert silenced.code == 0
    assert "Findings\n  No rule found a problem." in silenced.out


def test_production_findings_are_there_when_debug_is_off(shared: Server) -> None:
    with database(entry(shared.conninfo, STOCK)) as alias:
        with override_settings(DEBUG=True):
            assert "W011" not in Ran(database=[alias]).out
        with override_settings(DEBUG=False):
            assert "W011" in Ran(database=[alias]).out


@pytest.mark.parametrize(
    ("level", "code"), [("ERROR", 0), ("WARNING", 1), ("Warning", 1), ("warning", 1), ("INFO", 1)]
)
def test_the_fail_level_decides_the_exit_code(shared: Server, level: str, code: int) -> None:
    with database(entry(shared.conninfo)) as alias, override_settings(DEBUG=False):
        assert Ran(f"--fail-level={level}", database=[alias]).code == code


def test_colour_is_for_terminals(shared: Server) -> None:
    with database(entry(shared.conninfo)) as alias:
        out = StringIO()
        call_command("check_pool", database=[alias], stdout=out)
        assert "\x1b[" not in out.getvalue()
        call_command("check_pool", database=[alias], stdout=out, force_color=True)
        assert "\x1b[" in out.getvalue()


# JSON


@override_settings(DEBUG=True)
def test_the_json_is_one_document_as_documented(shared: Server) -> None:
    options = {
        "pool": {**POOL["pool"], "reconnect_timeout": float("inf"), "max_lifetime": float("inf")}
    }
    with database(entry(shared.conninfo, OPTIONS=options)) as alias:
        ran = Ran("--format", "json", "--database", alias, "--compare", "fullon_orm")
    document = json.loads(ran.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (document["schema"], document["exit_code"], ran.code) == (1, 1, 1)
    [reported] = document["databases"]
    assert {s["field"]: s["value"] for s in reported["configured"]["settings"]} == {
        "mode": "pool", "size": 20, "overflow": 10, "pre_ping": True, "recycle": -1,
        "timeout": 30.0, "pool.reconnect_timeout": None,
        "release": "request", "reset": "dirty",
    }  # fmt: skip
    assert reported["active"]["settings"]["recycle"] == -1
    assert reported["allowed"] == 50
    assert reported["test"]["failure"] is None
    assert all(reported["test"][f"{step}_ms"] > 0 for step in ("connect", "query"))
    assert document["findings"] == []
    comparison = document["comparison"]
    assert (comparison["profile"], comparison["matches"]) == ("fullon_orm", False)
    assert [r["name"] for r in comparison["rows"] if r["here"] != r["wanted"]] == [
        "DB_POOL_RECYCLE"
    ]


def test_the_keys_of_the_json_are_documented(shared: Server) -> None:
    page = (ROOT / "docs" / "check_pool.md").read_text()
    with (
        database(entry(shared.conninfo, OPTIONS=POOL)) as one,
        database(entry("host=127.0.0.1 port=1 user=x dbname=x"), alias="down") as two,
        override_settings(DEBUG=False),
    ):
        document = Ran("--database", one, two, "--format", "json", "--compare", "fullon_orm").json
    keys = {*document, *document["databases"][0], *document["findings"][0]}
    assert [key for key in keys if f"`{key}`" not in page] == []


# Bad arguments


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"database": ["defualt"]},
            "DATABASES has no alias 'defualt' (did you mean 'default'?); it has default.",
        ),
        (
            {"compare": "fulon_orm"},
            "There is no profile 'fulon_orm' (did you mean 'fullon_orm'?); there is fullon_orm.",
        ),
        (
            {"explain": "pool-exausted"},
            "The guide has no topic 'pool-exausted' (did you mean 'pool-exhausted'?);"
            " `manage.py check_pool --explain` lists them.",
        ),
    ],
)
def test_an_unknown_name_is_a_sentence_with_the_known_ones(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(CommandError) as raised:
        Ran(**options)
    assert raised.value.returncode == 2
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--compare", "nothing"), "there is fullon_orm"),
        (("--fail-level", "waring"), "(did you mean 'warning'?)"),
        (("--database",), "expected at least one argument"),
        (("--rps", "many"), "'many' is not a number above 0"),
        (("--no-such-option",), "unrecognized arguments: --no-such-option"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError) as raised:
        call_command("check_pool", *arguments)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("arguments", [("--database", "nobody"), ("--format", "xml")])
def test_bad_arguments_exit_with_2(arguments: tuple[str, ...]) -> None:
    """Those that the parser refuses, and those that the command does."""
    done = manage("check_pool", *arguments, DATABASE_URL="postgresql://127.0.0.1:1/x")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert arguments[1] in done.stderr


# Comparison


def test_settings_that_match_the_profile_exit_with_0(shared: Server) -> None:
    with database(entry(shared.conninfo, OPTIONS=POOL)) as alias:
        ran = Ran(database=[alias], compare="fullon_orm")
    assert ran.code == 0
    rows = ran.out[ran.out.index("Comparison with fullon_orm") :].splitlines()
    assert rows[1].split() == ["setting", "here", "fullon_orm", "match"]
    assert rows[2].split() == ["DB_POOL_SIZE", "20", "20", "yes"]
    assert "  other matches fullon_orm." in rows


def test_nothing_to_compare_is_no_match() -> None:
    with database(SQLITE) as alias:
        ran = Ran(database=[alias], compare="fullon_orm")
    assert ran.code == 1
    assert "no PostgreSQL alias to compare" in ran.out


@override_settings(**{SETTING: {"small": {"DB_POOL_SIZE": "many"}}})
def test_an_invalid_profile_exits_with_2() -> None:
    with pytest.raises(CommandError, match="DB_POOL_SIZE='many'") as raised:
        Ran(compare="small")
    assert raised.value.returncode == 2


# Pipes


def test_a_reader_that_leaves_early_causes_no_noise(shared: Server) -> None:
    with subprocess.Popen(
        [sys.executable, "manage.py", "check_pool"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 1


# Interruptions


def test_an_interrupt_at_the_end_of_a_wait_is_no_traceback(
    shared: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Where a signal arrives by chance: `threading` has left the wait, and lacks its lock.
    def interrupted(condition: threading.Condition, state: object) -> None:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        take_again(condition, state)

    take_again = threading.Condition._acquire_restore  # type: ignore[attr-defined]
    monkeypatch.setattr(threading.Condition, "_acquire_restore", interrupted)
    assert Ran().code == 130
    assert capsys.readouterr().err == "Interrupted; all connections are closed.\n"


@pytest.mark.usefixtures("shared")
def test_another_error_is_no_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(check_pool, "configured_databases", fails)
    with pytest.raises(RuntimeError, match="a defect"):
        Ran()
