"""`manage.py check_pool` where something fails: one sentence, and never a secret."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from django.db import connections

from tests.support.projects import OURS, POOL, STOCK, Ran, database, entry, line, manage
from tests.support.servers import PASSWORD_OVER_TCP, Server

pytestmark = [
    pytest.mark.usefixtures("unblocked"),
    pytest.mark.server(
        {"max_connections": "50"}, hba=PASSWORD_OVER_TCP, roles=["app LOGIN PASSWORD 'right'"]
    ),
]

NASTY = [
    "s3cret",
    "p@ss:w/rd?#[]",
    "100%",
    "a b+c",
    'it\'s \\ "quoted"',
    "ünï€",
    "x=1&y=2",
    "$(id)",
]


def test_a_server_that_is_down_is_one_sentence_and_the_settings_are_shown() -> None:
    done = manage("check_pool", DATABASE_URL="postgresql+asyncpg://u:s3cret@127.0.0.1:1/x")
    assert done.returncode == 1
    assert line(done.stdout, "DB_POOL_SIZE")
    said = " ".join(done.stdout.split())
    assert 'Failed: connection to server at "127.0.0.1", port 1 failed: Connection refused.' in said
    assert "Start it, or correct the host and port." in said
    assert "s3cret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_failure_is_in_the_json_too() -> None:
    with database(entry("host=127.0.0.1 port=1 user=x dbname=x", OPTIONS=POOL)) as alias:
        ran = Ran(database=[alias], format="json")
    [reported] = ran.json["databases"]
    assert (ran.code, ran.json["exit_code"]) == (1, 1)
    assert reported["server"] is None
    assert reported["connection_test"]["ok"] is False
    [failure] = reported["failures"]
    assert failure["section"] == "connection_test"
    assert "Connection refused" in failure["cause"]


def test_a_server_that_hangs_ends_in_a_failure(server: Server) -> None:
    with database(entry(server.conninfo, OPTIONS={**POOL, "connect_timeout": 2})) as alias:
        server.suspend()
        began = monotonic()
        ran = Ran(database=[alias])
        assert monotonic() - began < 7 + 10
        server.resume()
    assert ran.code == 1
    assert "Failed: " in ran.out


@pytest.mark.server({"max_connections": "5"})
def test_no_free_connection_on_the_server_is_a_failure_with_its_cause(server: Server) -> None:
    held = [psycopg.connect(server.conninfo) for _ in range(5)]
    with database(entry(server.conninfo, OPTIONS=POOL)) as alias:
        ran = Ran(database=[alias])
    for connection in held:
        connection.close()
    assert ran.code == 1
    assert "too many clients" in " ".join(ran.out.split())


@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_a_parameter_that_the_pool_refuses_is_a_failure_and_a_finding(
    shared: Server, engine: str
) -> None:
    with database(entry(shared.conninfo, engine, OPTIONS={"pool": {"min_sise": 4}})) as alias:
        ran = Ran(database=[alias])
    assert ran.code == 1
    assert "Failed: " in ran.out
    assert "did you mean 'min_size'?" in ran.out
    assert " ms " in line(ran.out, "connect")


def test_an_engine_that_cannot_be_loaded_is_a_failure() -> None:
    connections.settings["gone"] = connections.configure_settings(
        {"default": {"ENGINE": "no.such.engine", "NAME": "x"}}
    )["default"]
    try:
        text, document = Ran(database=["gone"]), Ran(database=["gone"], format="json")
    finally:
        del connections.settings["gone"]
    assert (text.code, document.code) == (1, 1)
    said = " ".join(text.out.split())
    assert "The engine cannot be loaded: There is no 'no.such.engine'" in said
    assert "Not checked: the rules on gone, whose engine cannot be loaded." in said
    assert "✓" not in said
    assert document.json["databases"][0]["failures"][0]["section"] == "configured"


@pytest.mark.parametrize("password", NASTY)
@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_a_password_is_never_shown(shared: Server, engine: str, password: str) -> None:
    options = {**POOL, "sslpassword": password}
    wrong = entry(f"{shared.tcp_conninfo} user=app", engine, PASSWORD=password, OPTIONS=options)
    with database(wrong) as alias:
        text, document = Ran(database=[alias]), Ran(database=[alias], format="json")
    assert text.code == 1
    assert "password authentication failed" in " ".join(text.out.split())
    for out in (text.out, document.out):
        for spelling in (password, quote(password), quote(password, safe=""), repr(password)[1:-1]):
            assert spelling not in out


def test_a_password_from_the_environment_is_never_shown(shared: Server) -> None:
    password = "p@ss w/rd%"
    for environ in (
        {"DATABASE_URL": f"postgresql://app:{quote(password, safe='')}@127.0.0.1:{shared.port}/x"},
        {"DB_HOST": "127.0.0.1", "DB_PORT": str(shared.port), "DB_NAME": "x", "DB_USER": "app",
         "DB_PASSWORD": password},
    ):  # fmt: skip
        done = manage("check_pool", "--traceback", **environ)
        assert done.returncode == 1
        assert password not in done.stdout + done.stderr
        assert quote(password, safe="") not in done.stdout + done.stderr


def password_of_app(_: Mapping[str, Any]) -> str:
    return "right"


@pytest.mark.parametrize("drill", [False, True])
def test_the_password_of_a_provider_is_used(shared: Server, drill: bool) -> None:
    extra = {"password_provider": f"{__name__}.password_of_app"}
    options = {"pool": {**POOL["pool"], "min_size": 2, "max_size": 3}}
    given = entry(f"{shared.tcp_conninfo} user=app", OPTIONS=options, ABS_ORM_APP=extra)
    with database(given) as alias:
        ran = Ran(database=[alias], drill=drill)
    assert ran.code == 0, ran.out
