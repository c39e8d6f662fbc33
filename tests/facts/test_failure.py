"""A failure is one sentence with a hint and without secrets."""

from __future__ import annotations

from urllib.parse import quote, quote_plus

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from hypothesis import assume, given
from hypothesis import strategies as st

from abs_orm_app.facts.failure import failure_of
from abs_orm_app.facts.secrets import hide
from tests.support.projects import of_environment
from tests.support.servers import Server

LOADING = "Error loading psycopg_pool module.\nDid you install psycopg[pool]?"  # Django's
HBA = """
local all postgres trust
host  all postgres 127.0.0.1/32 trust
host  all app      127.0.0.1/32 scram-sha-256
"""
LIMITS = {"max_connections": "8", "superuser_reserved_connections": "2"}

pytestmark = pytest.mark.server(LIMITS, hba=HBA, roles=["app LOGIN PASSWORD 'right'", "owner"])


def refusal(conninfo: str) -> Exception:
    with pytest.raises(psycopg.Error) as raised:
        psycopg.connect(f"connect_timeout=10 {conninfo}").close()
    return raised.value


def test_a_refused_connection_has_a_cause_and_a_hint() -> None:
    failure = failure_of(refusal("host=127.0.0.1 port=1 user=app"))
    assert failure.cause == (
        'connection to server at "127.0.0.1", port 1 failed: Connection refused.'
    )
    assert failure.hint == "Start PostgreSQL there, or correct the host and port."


@pytest.mark.parametrize(
    ("conninfo", "cause", "hint"),
    [
        ("user=app password=wrong", "password authentication failed", "or the password"),
        ("user=app", "no password supplied", "Set the password"),
        ("dbname=shop", 'database "shop" does not exist', "create the database"),
        ("user=nobody", "no pg_hba.conf entry", "pg_hba.conf"),
        ("sslmode=require", "server does not support SSL", "sslmode"),
        ("sslmode=always", 'invalid sslmode value: "always"', "option"),
        ("host=no.such.host.invalid", "failed to resolve host", "can resolve"),
        ("options='-c no_such=1'", "unrecognized configuration parameter", "option"),
        ("options='-c statement_timeout=x'", 'for parameter "statement_timeout"', "option"),
        ("options='x'", "invalid command-line argument", "option"),
        ("connect_timeout=x", "bad value for connect_timeout", "option"),
        ("target_session_attrs=x", "invalid target_session_attrs value", "option"),
        ("target_session_attrs=standby", "not in hot standby mode", "target_session_attrs"),
        ("target_session_attrs=read-only", "session is not read-only", "target_session_attrs"),
    ],
)
def test_a_refused_login_has_a_hint(shared: Server, conninfo: str, cause: str, hint: str) -> None:
    failure = failure_of(refusal(f"{shared.tcp_conninfo} {conninfo}"))
    assert cause in failure.cause
    assert hint in failure.hint


@pytest.mark.parametrize(
    ("query", "cause", "hint"),
    [
        ("SET statement_timeout = 1; SELECT pg_sleep(5)", "due to statement timeout", "raise"),
        ("SET ROLE nosuch", 'role "nosuch" does not exist', "assume_role"),
        ("SET ROLE owner", "permission denied to set role", "assume_role"),
    ],
)
def test_a_refused_statement_has_a_hint(shared: Server, query: str, cause: str, hint: str) -> None:
    with (
        psycopg.connect(f"{shared.tcp_conninfo} user=app password=right") as connection,
        pytest.raises(psycopg.Error) as raised,
    ):
        connection.execute(query)
    failure = failure_of(raised.value)
    assert cause in failure.cause
    assert hint in failure.hint


def test_too_many_clients_has_a_hint_about_the_pool(shared: Server) -> None:
    held = [psycopg.connect(shared.conninfo) for _ in range(8)]
    try:
        failure = failure_of(refusal(shared.conninfo))
    finally:
        for connection in held:
            connection.close()
    assert "too many clients" in failure.cause
    assert "DB_POOL_SIZE" in failure.hint


@pytest.mark.usefixtures("unblocked")
def test_a_wrong_password_is_told_where_user_and_password_came_from(shared: Server) -> None:
    url = f"postgresql://app@127.0.0.1:{shared.port}/postgres"
    ran = of_environment(DATABASE_URL=url, DB_PASSWORD="wrong")
    text = " ".join(ran.out.split())
    assert ran.code == 1
    assert (
        "The user comes from DATABASE_URL (environment), the password from DB_PASSWORD"
        " (environment)."
    ) in text


@pytest.mark.usefixtures("unblocked")
def test_a_url_without_a_host_is_told_that_a_socket_was_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    text = " ".join(of_environment(DATABASE_URL="postgresql://app@/shop").out.split())
    assert "No host is set, so a Unix socket of this machine is tried" in text


def test_a_missing_psycopg_pool_is_answered_with_what_to_install() -> None:
    for error in (ImportError("No module named 'psycopg_pool'"), ImproperlyConfigured(LOADING)):
        assert "pip install 'psycopg[binary,pool]'" in failure_of(error).hint


def test_control_characters_in_a_name_are_not_printed(shared: Server) -> None:
    failure = failure_of(refusal(f"{shared.conninfo} user='a\x1b[31m\nb'"))
    assert failure.cause.isprintable()


def test_an_error_of_several_lines_is_one_sentence() -> None:
    assert failure_of(ValueError("first\n\tsecond\nthird")).cause == "first."


def test_a_mistake_in_the_settings_is_not_taken_for_an_error_of_the_server() -> None:
    error = ImproperlyConfigured("OPTIONS['pool'] cannot have 'x'; it may have reset, timeout.")
    failure = failure_of(error)
    assert failure.hint == "Correct the settings of this database."
    assert failure.problem == "a connection cannot be made"


@pytest.mark.parametrize(
    ("error", "hint"),
    [(TypeError("what?"), "the settings"), (psycopg.OperationalError("what?"), "the server's log")],
)
def test_the_hint_of_an_unknown_error_depends_on_who_raised_it(error: Exception, hint: str) -> None:
    assert hint in failure_of(error).hint


@given(st.text(min_size=1), st.sampled_from([str, quote, quote_plus, repr]))
def test_a_secret_is_hidden_in_every_encoding(secret: str, write: type) -> None:
    assume(secret not in "before *** after")
    written = write(secret)
    assume("'" not in secret or write is not repr)
    assert hide(f"before {written} after", [secret]) in ("before *** after", "before '***' after")


@pytest.mark.parametrize("secret", ["p%40ss", "back\\slash", "it's", "a+b c", "ü€", "x" * 1000])
def test_a_secret_is_hidden_when_its_encoding_is_in_lower_case(secret: str) -> None:
    assert hide(f"<{quote(secret, safe='').lower()}>", [secret.lower()]) == "<***>"


def test_the_longer_of_two_overlapping_secrets_is_hidden_completely() -> None:
    assert hide("abcdef", ["abc", "abcdef", ""]) == "***"
