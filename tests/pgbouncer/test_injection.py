"""No name, password or option becomes a setting of PgBouncer that nobody wanted."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.management import CommandError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.pgbouncer_ini import entry, written
from tests.support.projects import OURS

TEXT = st.lists(
    st.sampled_from(
        [*"'\";=%[]#,\\ \t\r\n{}$", "x", "\x85", "\u2028", "user=postgres", "\nuser=x"]
    ),
    min_size=1,
    max_size=8,
).map("".join)
IN_A_DATABASE = {
    *("host", "port", "dbname", "pool_size", "reserve_pool", "max_db_connections"),
    "connect_query",
}
PAIR = re.compile(r"(\w+)=('(?:[^']|'')*'|[\w./:@-]+)(?: |$)", re.ASCII)


def parsed(line: str) -> dict[str, str]:
    """A connection string, as PgBouncer reads it."""
    found, rest = {}, line
    while rest:
        match = PAIR.match(rest)
        assert match, rest
        name, value = match.groups()
        found[name] = value[1:-1].replace("''", "'") if value.startswith("'") else value
        rest = rest[match.end() :]
    return found


def lines(text: str) -> list[str]:
    """Those that PgBouncer reads."""
    return [line for line in text.split("\n") if line.strip() and not line.startswith(";")]


def name(line: str) -> str:
    """What a line sets; its value may be empty."""
    return line.partition("=")[0].strip()


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["NAME", "USER", "PASSWORD", "HOST", "options", "assume_role"]), TEXT)
@example("USER", "app\nadmin_users = app")
@example("USER", ",")
@example("NAME", "x' user='postgres")
@example("assume_role", "x', false); drop table y; --")
def test_nothing_adds_a_line_or_a_parameter(place: str, text: str) -> None:
    given: dict[str, Any] = {
        "ENGINE": OURS, "NAME": "shop", "USER": "app", "PASSWORD": "secret", "HOST": "db",
    }  # fmt: skip
    if place in given:
        given[place] = text
    else:
        value = f"-c app.tenant={text}" if place == "options" else text
        given["OPTIONS"] = {place: value}
    usual = [name(line) for line in lines(written(shop=entry()))]
    try:
        found = lines(written("--with-password", shop=given))
    except CommandError:
        return
    (database,) = found[1 : found.index("[pgbouncer]")]
    pairs = parsed(database.partition(" = ")[2])
    assert pairs.keys() <= IN_A_DATABASE
    assert pairs["host"] == given["HOST"]
    assert pairs.get("dbname", "shop" if place != "NAME" else text) == given["NAME"]
    names = {name(line) for line in found[2:]}
    assert names - {"ignore_startup_parameters"} <= {*usual, "listen_addr", "auth_file"}


@pytest.mark.parametrize("address", ["127.0.0.1\nadmin_users = app", "::1\r", "\0"])
def test_an_address_to_listen_on_adds_no_line(address: str) -> None:
    with pytest.raises(CommandError, match="listen_addr would have a line break"):
        written("--listen-addr", address, shop=entry())
