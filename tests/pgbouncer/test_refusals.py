"""`manage.py pgbouncer_ini` refuses, in a sentence, what one PgBouncer cannot do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError

from tests.support.pgbouncer_ini import NAMELESS, entry, ini, written
from tests.support.projects import OURS, SQLITE, manage


def refusal(*arguments: str, **entries: dict[str, Any]) -> str:
    with pytest.raises(CommandError) as caught:
        written(*arguments, **entries)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (SQLITE, "DATABASES['shop'] is sqlite: PgBouncer supports PostgreSQL only."),
        ({"ENGINE": OURS, "NAME": "shop", "HOST": "a,b"}, "DATABASES['shop'] has several hosts"),
        ({"ENGINE": OURS, "NAME": "shop"}, "DATABASES['shop'] has no host"),
        (
            {"ENGINE": OURS, "NAME": "shop", "HOST": "postgresql://app:s3cret@db/shop"},
            "DATABASES['shop'] has more than a host in HOST: set the host only.",
        ),
        (
            {"ENGINE": OURS, "NAME": "", "OPTIONS": {"service": "x"}},
            "DATABASES['shop'] uses a service",
        ),
        (
            {"ENGINE": OURS, "NAME": "shop", "HOST": "db", "PORT": "1,2"},
            "DATABASES['shop'] has no single port: set one whole number.",
        ),
        (
            {"ENGINE": OURS, "NAME": "shop", "HOST": "db", "PASSWORD": "a\nb"},
            "DATABASES['shop'] has a line break in PASSWORD, which the file cannot hold.",
        ),
        (
            {"ENGINE": OURS, "NAME": "x", "HOST": "db", "OPTIONS": {"assume_role": "a\nb"}},
            "DATABASES['shop'] has a line break in assume_role",
        ),
        (
            {"ENGINE": OURS, "NAME": "x", "HOST": "db", "OPTIONS": {"options": "-c app.token=x"}},
            "DATABASES['shop'] sets app.token in its options, which looks like a secret",
        ),
        (
            {"ENGINE": OURS, "NAME": "x", "HOST": "db", "OPTIONS": {"sslmode": "verify-full"}},
            "DATABASES['shop'] verifies the server's certificate with certificates that only"
            " libpq finds",
        ),
        (
            {"ENGINE": OURS, "NAME": "x", "HOST": "db", "OPTIONS": {"options": "-x"}},
            "DATABASES['shop'] has options that are not all like -c NAME=VALUE.",
        ),
        (
            {"ENGINE": OURS, "NAME": "x", "HOST": "db", "OPTIONS": {"pool": {"min_size": "4"}}},
            "The pool of DATABASES['shop'] is not valid: see `manage.py check`.",
        ),
    ],
)
def test_what_pgbouncer_cannot_do_is_refused_in_a_sentence(
    given: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    assert refusal(shop=given).startswith(sentence)


def test_a_password_from_a_function_is_refused() -> None:
    given = {**entry(), "ABS_ORM_APP": {"password_provider": "shop.tokens.fresh"}}
    assert "which PgBouncer cannot call" in refusal(shop=given)


def test_pgbouncer_cannot_be_its_own_server() -> None:
    sentence = "DATABASES['shop'] is at port 6432, where PgBouncer itself would listen"
    assert refusal(shop=entry("postgresql://app:x@127.0.0.1:6432/shop")).startswith(sentence)
    remote = "postgresql://app:x@pooler.example.com:6432/shop"
    assert ini(shop=entry(remote))
    assert ini("--listen-port", "6433", shop=entry("postgresql://app:x@127.0.0.1:6432/shop"))
    own = "postgresql://app:x@10.1.2.3:6432/shop"
    assert refusal("--listen-addr", "::1, 10.1.2.3", shop=entry(own)).startswith(sentence)


def test_one_pgbouncer_cannot_have_two_timeouts() -> None:
    sentence = refusal(one=entry(), two=entry(DB_POOL_TIMEOUT="5"))
    assert sentence == (
        "DATABASES['one'] needs query_wait_timeout = 30, DATABASES['two'] 5, and one PgBouncer has"
        " one for all: make them equal, or write a file for each with --database."
    )


def test_one_role_has_one_password() -> None:
    aliases = {
        "one": entry("postgresql://app:first@one/shop"),
        "two": entry("postgresql://app:second@two/stock"),
    }
    sentence = (
        "DATABASES['one'] and DATABASES['two'] have different passwords for the role 'app', and one"
        " PgBouncer has one for all: make them equal, or write a file for each with --database."
    )
    assert refusal(**aliases) == sentence
    assert refusal("--userlist", "--with-password", **aliases) == sentence


def test_an_unknown_password_is_refused() -> None:
    elsewhere = entry("postgresql://app@db.example.com/shop")  # such as in .pgpass
    assert refusal("--userlist", "--with-password", shop=elsewhere).startswith(
        "DATABASES['shop'] has no password for the role 'app', which PgBouncer needs"
    )
    assert written("--userlist", shop=elsewhere) == '"app" "PASSWORD"\n'
    # Another alias may have it.
    both = written("--userlist", "--with-password", shop=elsewhere, stock=entry())
    assert both == '"app" "s3cret"\n'
    # Only the owner of the socket may connect, without a password.
    private = entry("postgresql://app@%2Frun%2Fpg/shop")
    assert written("--userlist", "--with-password", shop=private) == '"app" ""\n'


def test_session_pooling_is_refused_where_it_would_lose_the_options() -> None:
    given = {**entry(), "OPTIONS": {"options": r"-c search_path=a\ b,c"}}
    assert refusal("--pool-mode", "session", shop=given).endswith(
        "let the server set them with ALTER ROLE \"app\" SET search_path TO 'a b,c'."
    )


def test_an_account_without_a_name_needs_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGUSER", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: NAMELESS)
    sentence = "DATABASES['shop'] has no USER, and this account of the operating system has no"
    assert refusal(shop={"ENGINE": OURS, "NAME": "shop", "HOST": "db"}).startswith(sentence)


def test_an_option_that_is_a_secret_is_written_when_asked_for() -> None:
    given = {**entry(), "OPTIONS": {"options": "-c app.token=s3"}}
    assert "s3" not in refusal(shop=given)
    assert "'app.token'', ''s3''" in ini("--with-password", shop=given)["shop"]


def test_a_directory_that_cannot_be_written_to_is_a_sentence(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert refusal("--output", str(gone), shop=entry()) == (
        f"--output {gone}: pgbouncer.ini cannot be written: No such file or directory."
    )
    assert "leave out --userlist" in refusal("--output", ".", "--userlist", shop=entry())


def test_bad_arguments_exit_with_2() -> None:
    unknown = manage("pgbouncer_ini", "--database", "defautl")
    assert unknown.returncode == 2
    assert "no alias 'defautl' (did you mean 'default'?); it has default." in unknown.stderr
