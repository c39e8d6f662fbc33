"""The facts of an alias whose entry of DATABASES is not as Django would have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from abs_orm_app.environment import SETTINGS, PoolSettings, database_from_env
from abs_orm_app.facts.databases import configured
from tests.support.projects import OURS, STOCK, Ran, database

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"OPTIONS": None}, "OPTIONS is of type NoneType"),
    ({"OPTIONS": {3: 4}}, "keywords must be strings."),
    ({"OPTIONS": {"pool": {1: 2}}}, "psycopg_pool has no parameter '1'."),
    ({"ABS_ORM_APP": None}, "Connection refused"),
]


@pytest.mark.parametrize(("more", "reason"), BROKEN)
@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_a_wrong_entry_gives_a_sentence_and_no_traceback(
    engine: str, more: dict[str, Any], reason: str
) -> None:
    entry = {"ENGINE": engine, "NAME": "x", "HOST": "127.0.0.1", "PORT": "1"}
    with database({**entry, **more}) as alias:
        ran = Ran(database=[alias], verbosity=1)
        try:
            call_command("check")
        except SystemCheckError as error:
            assert reason in str(error)  # noqa: PT017
    assert ran.code == 1
    assert reason in " ".join(ran.out.split())


def test_a_password_in_a_url_given_as_the_host_is_not_shown() -> None:
    host = "postgres://app:s3cr%20et@db.invalid:5432/shop"
    with database({"ENGINE": OURS, "NAME": "x", "HOST": host}) as alias:
        out = Ran(database=[alias], verbosity=1).out
    assert "postgres://app:***@db.invalid" in " ".join(out.split())
    assert "et@db" not in out


@pytest.mark.parametrize(
    ("environ", "user", "password"),
    [
        (
            {"DATABASE_URL": "postgresql://app:x@h/n"},
            "DATABASE_URL (environment)",
            "DATABASE_URL (environment)",
        ),
        (
            {"R_DATABASE_URL": "postgresql://app@h/n", "R_DB_PASSWORD": "x"},
            "R_DATABASE_URL (environment)",
            "R_DB_PASSWORD (environment)",
        ),
        ({"DB_NAME": "n", "DB_USER": "app"}, "DB_USER (environment)", "nowhere: none is set"),
        (
            {"DB_NAME": "n", "DB_PASSWORD_PROVIDER": "a.b"},
            "this account of the system",
            "DB_PASSWORD_PROVIDER (environment)",
        ),
    ],
)
def test_where_user_and_password_come_from_is_known(
    environ: dict[str, str], user: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGUSER", raising=False)
    monkeypatch.delenv("PGPASSWORD", raising=False)
    prefix = "R_" if "R_DATABASE_URL" in environ else ""
    with database(database_from_env(prefix, environ=environ)) as alias:
        found = configured(alias)
    assert (found.user_source, found.password_source) == (user, password)


def test_where_they_come_from_in_an_entry_written_by_hand_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGPASSWORD", "x")
    with database({"ENGINE": OURS, "NAME": "x", "USER": "app"}) as alias:
        found = configured(alias)
    assert found.user_source == "DATABASES['other']['USER']"
    assert found.password_source == "PGPASSWORD (environment)"


def test_each_setting_is_read_back_once_from_the_entry_that_it_became() -> None:
    environ = {"DATABASE_URL": "postgresql://h/n", "DB_POOL_SIZE": "7", "DB_MAX_OVERFLOW": "3"}
    environ |= {"DB_POOL_RECYCLE": "-1", "DB_POOL_TIMEOUT": "5", "DB_POOL_LEAK_SECONDS": "9"}
    with database(database_from_env(environ=environ)) as alias:
        shown = configured(alias).settings
    settings = PoolSettings.from_env(environ=environ)
    set_or_always = [n for n in SETTINGS if SETTINGS[n].shown != "if set" or n == "leak_seconds"]
    assert [each.field for each in shown] == set_or_always
    assert {each.field: each.value for each in shown} == {
        name: getattr(settings, name) for name in set_or_always
    }


def error_of(engine: str) -> str:
    with database({"ENGINE": engine, "NAME": "x"}) as alias:
        return configured(alias).error


@pytest.mark.parametrize(
    ("engine", "meant"),
    [
        ("abs_orm_app.backends.postgres", "abs_orm_app.backends.postgresql"),
        ("django.db.backends.postgress", "django.db.backends.postgresql"),
    ],
)
def test_an_engine_with_a_typo_is_answered_with_what_was_meant(engine: str, meant: str) -> None:
    assert error_of(engine) == f"There is no {engine!r} (did you mean {meant!r}?)."
    assert error_of("shop.engine") == "There is no 'shop.engine'."


def test_an_engine_that_lacks_a_module_names_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine_of_a_test").mkdir()
    (tmp_path / "engine_of_a_test" / "base.py").write_text("import no_such_driver")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert error_of("engine_of_a_test") == "No module named 'no_such_driver'"


def test_settings_of_leases_are_shown_only_where_the_engine_has_them() -> None:
    for engine, expected in ((OURS, ["transaction", "dirty"]), (STOCK, [None, None])):
        given = {"ENGINE": engine, "NAME": "x", "OPTIONS": {"pool": True}}
        with database({**given, "ABS_ORM_APP": {"release": "transaction"}}) as alias:
            facts = configured(alias)
        shown = [facts.value("release"), facts.value("reset")]
        assert shown == expected
