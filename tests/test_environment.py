"""PoolSettings and database_from_env: from variables to one entry of DATABASES."""

import re
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from abs_orm_app.environment import (
    VARIABLES,
    PoolSettings,
    SettingsError,
    database_from_env,
    pool_processes,
    unknown_variables,
)

URL = "postgresql://app:s3cret@db.example:5433/shop"
DEFAULTS = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "18000",
    "application_name": "shop",
}


def entry(prefix: str = "", **variables: str) -> dict[str, Any]:
    return database_from_env(
        prefix,
        environ={"DATABASE_URL": URL, "DJANGO_SETTINGS_MODULE": "shop.settings", **variables},
    )


def problem(**variables: str) -> str:
    with pytest.raises(SettingsError) as error:
        database_from_env(environ={"DATABASE_URL": URL, **variables})
    assert "s3cret" not in str(error.value)
    return str(error.value)


# The pool


def test_the_settings_have_the_defaults_that_sqlalchemy_projects_use() -> None:
    settings = PoolSettings.from_env(environ={})
    assert settings == PoolSettings()
    assert settings == PoolSettings(
        mode="pool", size=20, overflow=10, pre_ping=True, recycle=3600, timeout=30.0
    )


def test_the_settings_are_read_from_the_environment() -> None:
    settings = PoolSettings.from_env(
        environ={
            "DB_POOL_MODE": "Persistent",
            "DB_POOL_SIZE": "5",
            "DB_MAX_OVERFLOW": "0",
            "DB_POOL_PRE_PING": "off",
            "DB_POOL_RECYCLE": "-1",
            "DB_POOL_TIMEOUT": " .5 ",
        }
    )
    assert settings == PoolSettings(
        mode="persistent", size=5, overflow=0, pre_ping=False, recycle=-1, timeout=0.5
    )


def test_pool_mode_writes_only_psycopg_pools_parameters_into_the_pool() -> None:
    database = entry()
    extra = database.pop("ABS_ORM_APP")
    assert database == {
        "ENGINE": "abs_orm_app.backends.postgresql",
        "NAME": "shop",
        "USER": "app",
        "PASSWORD": "s3cret",
        "HOST": "db.example",
        "PORT": "5433",
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "DISABLE_SERVER_SIDE_CURSORS": False,
        "OPTIONS": {
            **DEFAULTS,
            "pool": {"min_size": 20, "max_size": 30, "max_lifetime": 3600.0, "timeout": 30.0},
        },
    }
    assert extra["sources"].keys() == extra["variables"].keys() == VARIABLES.keys()
    assert (extra["mode"], extra["prefix"], extra["embedded"]) == ("pool", "", "")
    assert extra["leak_seconds"] is extra["password_file"] is extra["password_provider"] is None


@pytest.mark.parametrize(
    ("mode", "recycle", "max_age", "no_cursors"),
    [
        ("persistent", "60", 60, False),
        ("persistent", "-1", None, False),
        ("pgbouncer", "60", 0, True),
        ("null", "60", 0, False),
    ],
)
def test_the_other_modes_have_no_pool(
    mode: str, recycle: str, max_age: int | None, no_cursors: bool
) -> None:
    database = entry(DB_POOL_MODE=mode, DB_POOL_RECYCLE=recycle)
    assert database["OPTIONS"] == DEFAULTS
    assert database["CONN_MAX_AGE"] == max_age
    assert database["DISABLE_SERVER_SIDE_CURSORS"] is no_cursors
    assert database["CONN_HEALTH_CHECKS"] is True
    assert database["ABS_ORM_APP"]["mode"] == mode


def test_a_recycle_time_of_never_is_an_infinite_lifetime() -> None:
    assert entry(DB_POOL_RECYCLE="-1")["OPTIONS"]["pool"]["max_lifetime"] == float("inf")


def test_server_side_cursors_can_be_switched_in_every_mode() -> None:
    database = entry(DB_POOL_MODE="pgbouncer", DB_DISABLE_SERVER_SIDE_CURSORS="false")
    assert database["DISABLE_SERVER_SIDE_CURSORS"] is False
    assert entry(DB_DISABLE_SERVER_SIDE_CURSORS="true")["DISABLE_SERVER_SIDE_CURSORS"] is True


def test_leak_tracing_is_only_for_this_apps_engine() -> None:
    database = entry(DB_POOL_LEAK_SECONDS="2.5")
    assert database["ABS_ORM_APP"]["leak_seconds"] == 2.5
    assert "leak_seconds" not in database["OPTIONS"]["pool"]


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("DB_POOL_SIZE", ["abc", "1.5", "-1", "1_0", "٣", "262144", "1e1", "9" * 5000], "is not a"),
        ("DB_POOL_SIZE", ["0"], "is refused: to SQLAlchemy it means no limit"),
        ("DB_MAX_OVERFLOW", ["1.5", "-2"], "is not a whole number from 0 to 262143."),
        ("DB_MAX_OVERFLOW", ["-1"], "is refused: without a limit (SQLAlchemy's meaning), one"),
        ("DB_POOL_PRE_PING", ["ture"], "is not true or false (did you mean 'true'?)."),
        ("DB_POOL_PRE_PING", ["2", "None"], "is not true or false."),
        ("DB_POOL_RECYCLE", ["-2", "60.5", "1h"], "1 or more, or -1 for never."),
        ("DB_POOL_RECYCLE", ["0"], "is refused: no connection would be used twice"),
        ("DB_POOL_TIMEOUT", ["0", "-1", "30s", "inf", "nan", "1e300", "86401"], "above 0, up to"),
        ("DB_POOL_MODE", ["pol"], "persistent, pgbouncer, null (did you mean 'pool'?)."),
        ("DB_POOL_LEAK_SECONDS", ["0", "soon"], "is not a number of seconds above 0, up to 86400."),
        ("DB_POOL_PROCESSES", ["0", "many"], "is not a whole number from 1 to 262143."),
        ("DB_DISABLE_SERVER_SIDE_CURSORS", ["maybe"], "is not true or false."),
    ],
)
def test_a_refused_value_is_named_with_the_accepted_ones(
    name: str, values: list[str], reason: str
) -> None:
    for value in values:
        text = problem(**{name: value})
        assert text.startswith(f"{name}={value[:80]!r} is ")
        assert reason in text


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("DB_PASSWORD_PROVIDER", ["token", "a.b()", "a..b"], "is not the dotted path of a fun"),
        ("DB_PORT", ["0", "65536", "x", "1,,2"], "is not a whole number from 1 to 65535."),
        ("DB_HOST", ["h:x"], "is more than a host"),
        ("DB_USER", ["app:x"], "holds a colon"),
    ],
)
def test_a_part_of_the_address_is_not_shown_for_it_may_be_the_password(
    name: str, values: list[str], reason: str
) -> None:
    for value in values:
        assert problem(**{name: value}).startswith(f"{name} {reason}")


def test_an_empty_value_is_refused_for_every_variable() -> None:
    lines = problem(**dict.fromkeys(VARIABLES, "")).splitlines()[1:]
    reason = "is empty: give it a value, or unset it."
    assert sorted(lines) == sorted(f"  {name} {reason}" for name in VARIABLES)


def test_all_errors_are_reported_together() -> None:
    text = problem(DATABASE_URL="s3cret", DB_POOL_SIZE="abc", DB_PASSWORD_FILE="/nowhere")
    assert text == (
        "3 settings cannot be used.\n"
        "  DB_POOL_SIZE='abc' is not a whole number from 1 to 262143.\n"
        "  DATABASE_URL is not a URL like postgresql://USER:PASSWORD@HOST:PORT/NAME.\n"
        "  DB_PASSWORD_FILE cannot be read: No such file or directory."
    )


# The address


def test_the_address_may_be_given_in_parts() -> None:
    database = database_from_env(
        environ={"DB_HOST": "a,b", "DB_PORT": "1,2", "DB_NAME": "n", "DB_USER": "u@x"}
    )
    given = {key: database[key] for key in ("HOST", "PORT", "NAME", "USER", "PASSWORD")}
    assert given == {"HOST": "a,b", "PORT": "1,2", "NAME": "n", "USER": "u@x", "PASSWORD": ""}


def test_the_parts_fill_in_what_the_url_leaves_out() -> None:
    database = entry(DATABASE_URL="postgis://app@db.example/shop", DB_PASSWORD="$p#w", DB_PORT="1")
    assert (database["PASSWORD"], database["PORT"]) == ("$p#w", "1")
    assert database["ENGINE"] == "abs_orm_app.backends.postgis"


def test_parts_that_agree_with_the_url_are_accepted() -> None:
    assert entry(DB_HOST="db.example", DB_PASSWORD="s3cret") | {"ABS_ORM_APP": 0} == entry() | {
        "ABS_ORM_APP": 0
    }


def test_a_url_and_parts_that_contradict_it_are_refused() -> None:
    text = problem(DB_HOST="other", DB_PASSWORD="s3cret2")
    assert text.splitlines()[1:] == [
        "  DATABASE_URL (from environment) and DB_HOST (from environment) contradict each other:"
        " unset one of them.",
        "  DATABASE_URL (from environment) and DB_PASSWORD (from environment) contradict each"
        " other: unset one of them.",
    ]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "No database is set: set DATABASE_URL=postgresql://USER:PASSWORD@HOST:PORT/NAME, or"),
        ({"DB_HOST": "h"}, "DB_NAME is not set: give it the name of the database."),
        ({"DATABASE_URL": "postgres://h"}, "DATABASE_URL names no database: add /NAME to it."),
        (
            {"DB_NAME": "n", "DB_HOST": "a,b,c", "DB_PORT": "1,2"},
            "2 ports do not go with 3 hosts: give one port for all, or one for each.",
        ),
        (
            {"DATABASE_URL": "embedded:///x", "DB_PASSWORD": "p"},
            "DB_PASSWORD cannot be set together with the embedded server of DATABASE_URL:",
        ),
        (
            {"DATABASE_URL": "embedded:///x", "DB_PASSWORD_PROVIDER": "a.b"},
            "DB_PASSWORD_PROVIDER cannot be set together with the embedded server of",
        ),
        (
            {"DB_NAME": "n", "DB_PASSWORD": "p", "DB_PASSWORD_PROVIDER": "a.b"},
            "DB_PASSWORD_PROVIDER is set, and so is a password (DB_PASSWORD or the URL): unset one",
        ),
    ],
)
def test_an_incomplete_address_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape(message)):
        database_from_env(environ=variables)


def test_a_libpq_service_needs_no_database_name() -> None:
    assert entry(DATABASE_URL="postgresql:///?service=shop")["OPTIONS"]["service"] == "shop"


def test_the_default_url_is_used_only_where_no_address_is_set() -> None:
    default = "postgresql://h/default"
    assert database_from_env(default=default, environ={})["NAME"] == "default"
    assert database_from_env(default=default, environ={"DB_NAME": "n"})["HOST"] == ""
    with pytest.raises(SettingsError, match="No database is set"):
        database_from_env(default=default, environ={"DB_PASSWORD_PROVIDER": "a.b"})
    with pytest.raises(SettingsError, match="The default URL begins with mysql://"):
        database_from_env(default="mysql://h/n", environ={})


def test_the_password_provider_is_passed_on() -> None:
    database = entry(DATABASE_URL="postgres://h/n", DB_PASSWORD_PROVIDER="shop.iam.token")
    assert database["ABS_ORM_APP"]["password_provider"] == "shop.iam.token"
    assert database["PASSWORD"] == ""


def test_a_server_that_is_gone_without_a_word_is_found_within_20_seconds() -> None:
    """`tests/pool/test_causes.py` cuts a network; here the numbers are added up."""
    options = {name: int(DEFAULTS[name]) for name in DEFAULTS if name != "application_name"}
    waiting = options["keepalives_interval"] * options["keepalives_count"]
    assert options["keepalives_idle"] + waiting < 20
    assert options["tcp_user_timeout"] < 20_000
    assert entry()["OPTIONS"].items() >= DEFAULTS.items()


def test_the_url_and_libpqs_own_variables_override_the_default_options() -> None:
    url = f"{URL}?connect_timeout=3&sslmode=require"
    options = entry(DATABASE_URL=url, PGAPPNAME="worker", DB_POOL_MODE="null")["OPTIONS"]
    assert options.pop("connect_timeout") == "3"
    assert options.pop("sslmode") == "require"
    assert options == {
        key: value
        for key, value in DEFAULTS.items()
        if key not in ("connect_timeout", "application_name")
    }


# Several databases


def test_a_prefix_falls_back_to_the_plain_pool_setting_but_not_to_the_plain_address() -> None:
    database = entry(
        "REPLICA_",
        REPLICA_DATABASE_URL="postgres://replica/shop",
        DB_PASSWORD="s3cret",
        DB_POOL_SIZE="4",
        DB_MAX_OVERFLOW="1",
        REPLICA_DB_MAX_OVERFLOW="2",
    )
    assert (database["HOST"], database["PASSWORD"]) == ("replica", "")
    assert database["OPTIONS"]["pool"]["min_size"] == 4
    assert database["OPTIONS"]["pool"]["max_size"] == 6
    extra = database["ABS_ORM_APP"]
    assert extra["prefix"] == "REPLICA_"
    assert extra["variables"]["DB_POOL_SIZE"] == "DB_POOL_SIZE"
    assert extra["variables"]["DB_MAX_OVERFLOW"] == "REPLICA_DB_MAX_OVERFLOW"


def test_with_a_prefix_an_error_names_the_variable_that_was_read() -> None:
    with pytest.raises(SettingsError) as error:
        entry("REPLICA_", REPLICA_DB_POOL_SIZE="x", DB_MAX_OVERFLOW="y")
    assert [line.split()[0] for line in str(error.value).splitlines()[1:]] == [
        "REPLICA_DB_POOL_SIZE='x'",
        "DB_MAX_OVERFLOW='y'",
        "No",
    ]
    assert "set REPLICA_DATABASE_URL=" in str(error.value)


# Beside the entry


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, 1),
        ({"WEB_CONCURRENCY": "4"}, 4),
        ({"WEB_CONCURRENCY": "auto"}, 1),
        ({"WEB_CONCURRENCY": "0"}, 1),
        ({"WEB_CONCURRENCY": "4", "DB_POOL_PROCESSES": "9"}, 9),
    ],
)
def test_the_number_of_processes_defaults_to_web_concurrency(
    variables: dict[str, str], count: int
) -> None:
    assert pool_processes(variables) == count


def test_the_number_of_processes_is_the_same_for_all_databases() -> None:
    database = entry("R_", R_DATABASE_URL=URL, R_DB_POOL_PROCESSES="x", DB_POOL_PROCESSES="4")
    assert database["ABS_ORM_APP"]["variables"]["DB_POOL_PROCESSES"] == "DB_POOL_PROCESSES"
    with pytest.raises(SettingsError, match=r"^DB_POOL_PROCESSES='x' is not a whole number"):
        entry("R_", R_DATABASE_URL=URL, DB_POOL_PROCESSES="x")


def test_an_invalid_number_of_processes_is_refused() -> None:
    with pytest.raises(SettingsError, match="DB_POOL_PROCESSES='0' is not a whole number"):
        pool_processes({"DB_POOL_PROCESSES": "0"})


@pytest.mark.parametrize("name", ["DB_POOLSIZE", "DB_POLL_SIZE", "DBPOOL_SIZE", "POOL_SIZE"])
def test_a_typo_in_the_middle_is_found_while_the_variable_is_not_set(name: str) -> None:
    assert unknown_variables({name: "5"}) == {name: "DB_POOL_SIZE"}
    assert unknown_variables({name: "5", "DB_POOL_SIZE": "5"}) == {}


def test_an_unknown_pool_variable_is_found_with_a_suggestion() -> None:
    names = [
        *("DB_POOL_SISE", "DB_POOL_MAX_OVERFLOW", "DB_MAX_OVERFLOWS", "DB_POOL_QUUX", "DB_SHARDS"),
        *("REPLICA_DB_POOL_RECICLE", "KC_DB_POOL_MIN_SIZE", "DB_POOL_SIZE", "DATABASE_URL_FILE"),
        *("REPLICA_DB_MAX_OVERFLOW", "REPLICA_DB_POOL_PROCESSES"),
    ]
    environ = dict.fromkeys(names, "1")
    assert unknown_variables(environ, ["", "REPLICA_"]) == {
        "DB_POOL_SISE": "DB_POOL_SIZE",
        "DB_POOL_MAX_OVERFLOW": "DB_MAX_OVERFLOW",
        "DB_MAX_OVERFLOWS": "DB_MAX_OVERFLOW",
        "DB_POOL_QUUX": None,
        "REPLICA_DB_POOL_RECICLE": "REPLICA_DB_POOL_RECYCLE",
        "REPLICA_DB_POOL_PROCESSES": "DB_POOL_PROCESSES",
    }


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DB_PASWORD", "DB_PASSWORD"),
        ("DB_PASSWROD", "DB_PASSWORD"),
        ("DB_PASSWORD_FIEL", "DB_PASSWORD_FILE"),
        ("DATABSE_URL", "DATABASE_URL"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("DB_URL", "DATABASE_URL"),
        ("DB_HOSTNAME", "DB_HOST"),
        ("DB_HOSTS", "DB_HOST"),
        ("DB_USERNAME", "DB_USER"),
        ("DB_DATABASE", "DB_NAME"),
        ("DB_PASS", "DB_PASSWORD"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "REPLICA_"])
def test_a_typo_in_an_address_variable_is_found_with_a_suggestion(
    prefix: str, name: str, meant: str
) -> None:
    environ = {prefix + name: "s3cret"}
    assert unknown_variables(environ, [prefix]) == {prefix + name: prefix + meant}
    with pytest.raises(SettingsError) as error:
        database_from_env(prefix, environ=environ)
    text = str(error.value)
    assert text.endswith(f" {prefix}{name} is set: did you mean {prefix}{meant}?")
    assert text.startswith("No database is set")
    assert "s3cret" not in text


@pytest.mark.parametrize(
    "environ",
    [
        {"DATABASE_URL": URL, "DATABASE_URI": "sqlite://", "DB_USERNAME": "x", "DB_HOSTNAME": "x"},
        {"DB_NAME": "n", "DB_HOST": "h", "DB_HOSTNAME": "x", "DB_HOSTS": "x"},
        {"DB_NAME": "n", "DB_PASSWORD_FILE": "x", "DB_PASWORD": "x", "DB_PASS": "x"},
        {"DB_NAME": "n", "DB_TYPE": "x", "DB_BACKUP_HOST": "x", "DB_SCHEMA": "x", "DB_SSL": "x"},
    ],
)
def test_a_variable_of_another_program_is_ignored(environ: dict[str, str]) -> None:
    assert unknown_variables(environ) == {}
