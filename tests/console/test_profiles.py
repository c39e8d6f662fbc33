"""Profiles: ours, the project's own, and the comparison with them."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from abs_orm_app.console.profiles import PROFILES, SETTING, compare, profiles
from abs_orm_app.environment import PoolSettings, database_from_env
from abs_orm_app.facts.databases import Configured, configured
from tests.support.projects import STOCK, database


def from_env(**environ: str) -> Configured:
    with database(
        database_from_env(environ={"DATABASE_URL": "postgresql:///x", **environ})
    ) as alias:
        return configured(alias)


def differences(here: Configured, name: str = "fullon_orm") -> list[str]:
    return [row.name for row in compare([here], name, profiles()[name]).rows if not row.matches]


def test_our_defaults_are_those_of_fullon_orm() -> None:
    ours = PoolSettings()
    assert list(PROFILES["fullon_orm"].values()) == [
        ours.size, ours.overflow, ours.pre_ping, ours.recycle, ours.timeout,
    ]  # fmt: skip
    assert differences(from_env()) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DB_POOL_SIZE", "5"),
        ("DB_MAX_OVERFLOW", "0"),
        ("DB_POOL_PRE_PING", "false"),
        ("DB_POOL_RECYCLE", "-1"),
        ("DB_POOL_TIMEOUT", "2.5"),
    ],
)
def test_each_setting_is_compared(variable: str, value: str) -> None:
    assert differences(from_env(**{variable: value})) == [variable]


def test_a_setting_that_the_mode_does_not_use_does_not_match() -> None:
    assert differences(from_env(DB_POOL_MODE="persistent")) == [
        "DB_POOL_SIZE",
        "DB_MAX_OVERFLOW",
        "DB_POOL_TIMEOUT",
    ]


def test_a_database_written_by_hand_is_compared_too() -> None:
    pool: dict[str, Any] = {"min_size": 20, "max_size": 30, "max_lifetime": 3600, "timeout": 30}
    entry = {"ENGINE": STOCK, "NAME": "x", "CONN_HEALTH_CHECKS": True}
    with database({**entry, "OPTIONS": {"pool": pool}}) as alias:
        assert differences(configured(alias)) == []
    with database({**entry, "OPTIONS": {"pool": True}}) as alias:
        assert differences(configured(alias)) == ["DB_POOL_SIZE", "DB_MAX_OVERFLOW"]


@override_settings(**{SETTING: {"small": {"DB_POOL_SIZE": 5, "DB_POOL_RECYCLE": "-1"}}})
def test_a_projects_own_profile_compares_only_what_it_names() -> None:
    assert list(profiles()) == ["fullon_orm", "small"]
    assert differences(from_env(), "small") == ["DB_POOL_SIZE", "DB_POOL_RECYCLE"]
    assert differences(from_env(DB_POOL_SIZE="5", DB_POOL_RECYCLE="-1"), "small") == []


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (["small"], "ABS_ORM_APP_PROFILES must be a dict of profiles by name."),
        ({"x": 5}, "ABS_ORM_APP_PROFILES['x'] must be a dict such as {'DB_POOL_SIZE': 20}."),
        ({"x": {}}, "ABS_ORM_APP_PROFILES['x'] must be a dict such as {'DB_POOL_SIZE': 20}."),
        (
            {"x": {"DB_POOL_SISE": 5}},
            "ABS_ORM_APP_PROFILES['x'] has no setting 'DB_POOL_SISE'"
            " (did you mean 'DB_POOL_SIZE'?).",
        ),
        (
            {"x": {"DB_POOL_SIZE": 1.5, "DB_POOL_PRE_PING": None}},
            "ABS_ORM_APP_PROFILES['x']: DB_POOL_SIZE='1.5' is not a whole number from 1 to 262143."
            " DB_POOL_PRE_PING='None' is not true or false.",
        ),
    ],
)
def test_an_invalid_profile_is_refused_in_a_sentence(own: object, sentence: str) -> None:
    with override_settings(**{SETTING: own}), pytest.raises(ImproperlyConfigured) as raised:
        profiles()
    assert str(raised.value) == sentence
