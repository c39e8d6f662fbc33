"""The facts of an alias whose entry of DATABASES is not as Django would have it."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from tests.support.projects import OURS, STOCK, database

BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"OPTIONS": None}, "'NoneType' object is not a mapping."),
    ({"OPTIONS": {3: 4}}, "keywords must be strings."),
    ({"OPTIONS": {"pool": {1: 2}}}, "psycopg_pool has no parameter '1'."),
    ({"ABS_ORM_APP": None}, "Connection refused"),
]


@pytest.mark.parametrize(("more", "reason"), BROKEN)
@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_an_entry_that_is_wrong_ends_no_command_with_a_traceback(
    engine: str, more: dict[str, Any], reason: str
) -> None:
    shown = StringIO()
    entry = {"ENGINE": engine, "NAME": "x", "HOST": "127.0.0.1", "PORT": "1"}
    with database({**entry, **more}) as alias:
        with pytest.raises(SystemExit):
            call_command("check_pool", database=[alias], stdout=shown, no_color=True)
        try:
            call_command("check", stdout=shown)
        except SystemCheckError as error:
            assert reason in str(error)  # noqa: PT017
    assert reason in " ".join(shown.getvalue().split())


def test_a_password_in_a_url_that_was_given_as_the_host_is_not_shown() -> None:
    shown = StringIO()
    host = "postgres://app:s3cr%20et@db.invalid:5432/shop"
    with database({"ENGINE": OURS, "NAME": "x", "HOST": host}) as alias, pytest.raises(SystemExit):
        call_command("check_pool", database=[alias], stdout=shown, no_color=True)
    assert "postgres://app:***@db.invalid" in " ".join(shown.getvalue().split())
    assert "et@db" not in shown.getvalue()
