"""The secrets of every alias are taken out of every text, whichever alias it is about."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from abs_orm_app.facts.connecting import parameters_of
from abs_orm_app.facts.databases import configured
from abs_orm_app.facts.failure import failure_of
from abs_orm_app.facts.secrets import scrub
from tests.support.projects import OURS, database

HERE: dict[str, Any] = {"ENGINE": OURS, "NAME": "shop", "USER": "app", "HOST": "127.0.0.1"}


def test_an_error_loses_the_secrets_of_all_aliases() -> None:
    with ExitStack() as stack:
        stack.enter_context(database({**HERE, "PASSWORD": "f1rst"}, "one"))
        stack.enter_context(database({**HERE, "PASSWORD": "s3cond"}, "two"))
        text = failure_of(ValueError("f1rst and s3cond"), configured("one")).cause
    assert text == "*** and ***."


@pytest.mark.parametrize(
    "option",
    ["password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"],
)
def test_options_that_are_secrets_are_hidden(option: str) -> None:
    with database({**HERE, "OPTIONS": {option: "s3cret"}}):
        assert scrub("x s3cret y") == "x *** y"


def test_a_word_that_is_a_name_of_some_alias_is_no_secret() -> None:
    with ExitStack() as stack:
        stack.enter_context(database({**HERE, "PASSWORD": "shop"}, "one"))
        stack.enter_context(database({**HERE, "PASSWORD": "app"}, "two"))
        assert scrub("shop as app") == "shop as app"


def test_a_password_that_was_read_for_a_connection_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("r0tated")
    extra = {"password_file": str(tmp_path / "password")}
    with database({**HERE, "ABS_ORM_APP": extra}) as alias:
        assert parameters_of(connections[alias])["password"] == "r0tated"
        assert scrub("x r0tated y") == "x *** y"


@pytest.mark.parametrize(
    "text", ["a\x1b[31mb", "a\rb", "a\x07b", "a\u202eb", "a\x9b2Jb"], ids=ascii
)
def test_an_error_that_would_command_the_terminal_is_harmless(text: str) -> None:
    assert failure_of(ValueError(text)).cause.isprintable()
