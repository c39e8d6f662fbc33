"""`check_pool --explain`: the guide in the terminal, offline."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from abs_orm_app.checks.guide import entries, find_entry
from abs_orm_app.pool import messages
from abs_orm_app.pool.messages import Cause
from tests.support.projects import ROOT, Ran, manage

NOWHERE = "postgresql://app:s3cret@127.0.0.1:1/shop"
SOURCES = sorted((ROOT / "abs_orm_app").rglob("*.py"))


def test_a_finding_is_explained_without_a_database() -> None:
    done = manage("check_pool", "--explain", "E021", DATABASE_URL=NOWHERE)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert first == "E021: the pool size does not fit"
    assert "Every process opens as many connections" in " ".join(rest)
    assert "W021" not in done.stdout, "the next entry is another topic"


@pytest.mark.parametrize(
    "topic", ["E021", "e021", "abs_orm_app.E021", "docs/checks.md#E021", "#E021"]
)
def test_a_topic_is_found_however_it_is_written(topic: str) -> None:
    assert find_entry(topic).title == "E021: the pool size does not fit"


def test_a_message_is_explained_by_its_entry() -> None:
    ran = Ran(explain="pool-exhausted")
    assert ran.out.startswith("Pool exhausted\n")
    assert "What to do." in ran.out


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("FATAL:  sorry, too many clients already", "Too many clients"),
        (
            "couldn't get a connection after 3.00 sec: all 6 connections are in use.",
            "Pool exhausted",
        ),
        ("django.db.utils.OperationalError: connection timeout expired", "Server down"),
        ("x See `manage.py check_pool --explain hung-server`.", "Hung server"),
        ("cannot execute UPDATE in a read-only transaction", "Writes go to a standby"),
        ('password authentication failed for user "shop"', "Wrong credentials"),
        ("terminating connection due to administrator command", "Stale connection"),
        ("ERROR:  canceling statement due to statement timeout", "Slow statements"),
        ("ERROR:  canceling statement due to lock timeout", "Lock queue"),
        (
            "1 session waits for a lock, the longest for 3 s; server process 7 blocks it.",
            "Lock queue",
        ),
        ("idle in a transaction: the longest for 9 s, server process 7.", "Pool exhausted"),
        ("slow or locked", "Slow statements"),
        ("hung", "Hung server"),
    ],
)
def test_a_message_that_was_pasted_is_explained(message: str, title: str) -> None:
    assert find_entry(message).title == title


@pytest.mark.parametrize(
    "cause",
    [
        messages.exhausted(1, in_transaction=0, unused=0),
        messages.slow_or_locked(6, 6),
        messages.no_answer("db:5432", silent=True),
        messages.no_answer("db:5432", silent=False),
        messages.opening(3.0),
        messages.read_only("db:5432", "read-only"),
    ],
    ids=lambda cause: cause.name,
)
def test_each_line_of_the_log_is_explained_by_the_entry_of_its_cause(cause: Cause) -> None:
    for line in (
        f"pool 'default': {cause.text}",
        messages.requests_fail("default", cause, "Held by GET /orders/ (6)."),
        messages.trouble_goes_on("default", cause, 60.0, 5, 5),
    ):
        assert find_entry(line).topic == cause.entry


def test_an_entry_is_shown_without_what_only_a_browser_needs() -> None:
    for topic in entries():
        out = Ran(explain=topic).out
        assert "<a id" not in out, topic
        assert "\\_" not in out, topic


def test_without_a_topic_all_of_them_are_listed() -> None:
    out = Ran("--explain").out
    assert [topic for topic in entries() if topic not in out] == []


def strings() -> Iterator[tuple[str, str]]:
    """Each string of the package that is no docstring, with the name of its file."""
    for source in SOURCES:
        tree = ast.parse(source.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in docstrings
            ):
                yield source.name, node.value


def test_no_message_names_a_file_that_a_user_does_not_have() -> None:
    """The package has no docs/: a message names the command that prints them."""
    assert [(name, text) for name, text in strings() if re.search(r"\bdocs/", text)] == []
