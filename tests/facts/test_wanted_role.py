"""Whether a server has the role that its alias needs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from abs_orm_app.facts.wording import role_in_words
from tests.support.aliases import facts
from tests.support.facts import server_facts


@pytest.mark.parametrize(
    ("attrs", "written", "wanted"),
    [
        ("", True, "primary"),
        ("", False, "either"),
        ("any", True, "either"),
        ("read-write", False, "primary"),
        ("primary", False, "primary"),
        ("standby", True, "standby"),
        ("prefer-standby", False, "standby"),
        ("read-only", True, "either"),
    ],
)
def test_what_an_alias_needs(attrs: str, written: bool, wanted: str) -> None:
    database = replace(facts(), target_session_attrs=attrs, written=written)
    assert database.wanted_role == wanted


@pytest.mark.parametrize(
    ("attrs", "written", "in_recovery", "read_only", "said"),
    [
        ("", True, False, False, "primary, accepts writes, as this alias needs"),
        ("", True, True, True, "standby, read only, but this alias needs a primary"),
        ("", False, True, True, "standby, read only"),
        ("", True, False, True,
         "primary, but its transactions are read-only by default, and this alias writes"),
        ("standby", False, True, True, "standby, read only, as this alias needs"),
        ("prefer-standby", False, False, False,
         "primary, accepts writes, but this alias needs a standby"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_server(
    attrs: str, written: bool, in_recovery: bool, read_only: bool, said: str
) -> None:
    database = replace(facts(), target_session_attrs=attrs, written=written)
    server = server_facts(in_recovery=in_recovery, read_only=read_only)
    assert role_in_words(database, server) == said
