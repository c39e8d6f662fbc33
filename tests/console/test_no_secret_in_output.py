"""No command prints a password, whatever is in it and wherever the settings have it."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from io import StringIO
from typing import Any
from urllib.parse import quote

import pytest
from django.core.management import CommandError, call_command
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from abs_orm_app.environment import SettingsError, database_from_env
from tests.support.projects import OURS, database, manage
from tests.support.servers import PASSWORD_OVER_TCP, Server

MARK = "Zq7"  # nothing that a command prints has it
ALIAS = "marked"

pytestmark = [
    pytest.mark.server(hba=PASSWORD_OVER_TCP, roles=["app LOGIN PASSWORD 'right'"]),
    pytest.mark.usefixtures("unblocked"),
]

SPECIAL = (*":/?#@%[]&=;,+ '\"\\$\t\x1b*", MARK)
PASSWORDS = st.lists(
    st.one_of(st.sampled_from(SPECIAL), st.characters(codec="utf-8")), max_size=6
).map(lambda parts: "".join([MARK, *parts, MARK]).replace("\0", "").replace("\n", ""))
PLACES = ("url", "variable", "entry", "option", "sslpassword", "host", "options")
COMMANDS = (
    ("check_pool", "--database", ALIAS, "-v", "2"),
    ("check_pool", "--database", ALIAS, "--format", "json"),
    ("check_pool", "--database", ALIAS, "--drill"),
    ("check_pool", "--database", ALIAS, "--compare", "fullon_orm"),
    ("check", "--database", ALIAS),
    ("check", "--database", ALIAS, "--deploy"),
    ("pgbouncer_ini", "--database", ALIAS),
    ("pgbouncer_ini", "--database", ALIAS, "--userlist"),
)


def entry(place: str, password: str, port: int) -> dict[str, Any]:
    """An entry of DATABASES with this wrong password somewhere."""
    given: dict[str, Any] = {
        "ENGINE": OURS,
        "NAME": "postgres",
        "USER": "app",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "OPTIONS": {"connect_timeout": 5},
    }
    if place == "url":
        url = f"postgresql://app:{quote(password, safe='')}@127.0.0.1:{port}/postgres"
        return database_from_env(environ={"DATABASE_URL": url})
    if place == "variable":
        environ = {"DB_HOST": "127.0.0.1", "DB_PORT": str(port), "DB_NAME": "postgres"}
        return database_from_env(environ={**environ, "DB_USER": "app", "DB_PASSWORD": password})
    if place == "entry":
        return {**given, "PASSWORD": password}
    if place == "host":  # a whole URL by mistake
        return {**given, "HOST": f"postgresql://app:{quote(password, safe='')}@127.0.0.1/postgres"}
    if place == "options":
        return {**given, "OPTIONS": {"options": f"-c app.password={quote(password)}"}}
    name = "password" if place == "option" else place
    return {**given, "OPTIONS": {**given["OPTIONS"], name: password}}


def printed(*command: str) -> str:
    """All that a command prints, and says where it refuses."""
    name, *arguments = command
    out, err = StringIO(), StringIO()
    refusal = ""
    try:
        with suppress(SystemExit):
            call_command(name, *arguments, stdout=out, stderr=err, no_color=True)
    except (CommandError, SettingsError) as error:
        refusal = str(error)
    return f"{out.getvalue()}{err.getvalue()}{refusal}"


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(place=st.sampled_from(PLACES), password=PASSWORDS, command=st.sampled_from(COMMANDS))
@example(place="url", password=f"{MARK}%{MARK}", command=COMMANDS[0])
@example(place="host", password=f"{MARK}:@{MARK}", command=COMMANDS[0])
@example(place="options", password=MARK, command=COMMANDS[3])
@example(place="sslpassword", password=MARK, command=COMMANDS[1])
def test_no_command_prints_a_password(
    place: str,
    password: str,
    command: tuple[str, ...],
    shared: Server,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG), database(entry(place, password, shared.port), ALIAS):
        text = printed(*command)
    assert text
    assert MARK not in text + caplog.text


MALFORMED = (
    {"DATABASE_URL": f"postgresql://app:a/{MARK}?{MARK}&{MARK}=5@db.example/shop"},
    {"DATABASE_URL": f"'postgresql://app:{MARK}@db.example/shop'"},
    {"DATABASE_URL_FILE": f"postgresql://app:{MARK}@db.example/shop"},
    {"DB_NAME": "shop", "DB_HOST": f"db.example:{MARK}", "DB_PASSWORD_FILE": f"/{MARK}"},
    {"DB_NAME": "shop", "DB_USER": f"app:{MARK}", "DB_POOL_SIZE": "x"},
)


IN_A_PROCESS = (
    ("check_pool",),
    ("check_pool", "--format", "json"),
    ("check_pool", "--traceback"),
    ("check", "--deploy", "--traceback"),
    ("pgbouncer_ini", "--with-password"),
)


@pytest.mark.parametrize(("environ", "command"), [*zip(MALFORMED, IN_A_PROCESS, strict=True)])
def test_no_command_of_a_process_prints_the_password_of_settings_that_it_refuses(
    environ: dict[str, str], command: tuple[str, ...]
) -> None:
    """The settings refuse them before a command starts, so any pair of both is as good."""
    done = manage(*command, **environ, ENV_FILE=os.devnull)
    assert done.returncode != 0
    assert done.stdout + done.stderr
    assert MARK not in done.stdout + done.stderr
