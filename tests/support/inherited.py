"""What a request can leave on its session: 18 kinds, how to change each and how to find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Event
from typing import Any

import psycopg
from django.db import Error, connections, transaction

from tests.support.databases import ask
from tests.support.pools import Call

SETUP = [
    "CREATE FUNCTION hide(value text) RETURNS text LANGUAGE sql"
    " AS $$ SELECT set_config('app.hidden', value, false) $$"
]
LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"


@dataclass(frozen=True)
class Kind:
    """`change` is what a request does; `find` is how another statement sees it.

    `hidden`: nobody can see it in the statement.
    """

    name: str
    change: str | Callable[[Any], object]
    find: str | Callable[[Any], object]
    hidden: bool = False

    def do(self, alias: str) -> None:
        wrapper = connections[alias]
        self.change(wrapper) if callable(self.change) else ask(wrapper, self.change)

    def look(self, alias: str) -> object:
        """What is found; None if nothing, also for what PostgreSQL has instead of nothing."""
        wrapper = connections[alias]
        try:
            found = self.find(wrapper) if callable(self.find) else ask(wrapper, self.find)
        except (psycopg.Error, Error):
            return None
        return found or None


def _is_seeded(wrapper: Any) -> object:
    """With this seed the first numbers are always the same."""
    settings = wrapper.settings_dict
    where = {"host": settings["HOST"], "port": settings["PORT"], "user": settings["USER"]}
    with psycopg.connect(dbname=settings["NAME"], **where, autocommit=True) as connection:
        connection.execute("SELECT setseed(0.5)")
        numbers = [connection.execute("SELECT random()").fetchone() for _ in range(11)]
    return (ask(wrapper, "SELECT random()"),) in numbers


def _rows_as_dicts(wrapper: Any) -> None:
    wrapper.ensure_connection()
    wrapper.connection.row_factory = psycopg.rows.dict_row


def _is_dict(wrapper: Any) -> object:
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1 AS n")
        return isinstance(cursor.fetchone(), dict)


def _numbers_as_text(wrapper: Any) -> None:
    wrapper.ensure_connection()
    wrapper.connection.adapters.register_loader("int4", psycopg.types.string.TextLoader)


def _is_text(wrapper: Any) -> object:
    return isinstance(ask(wrapper, "SELECT 1::int4"), str)


def _is(setting: str, value: str) -> str:
    return f"SELECT nullif(current_setting('{setting}', true) = '{value}', false)"


KINDS = [
    Kind("`SET app.tenant`", "SET app.tenant = '7'", _is("app.tenant", "7")),
    Kind(
        "`set_config(..., false)`",
        "SELECT set_config('app.other', '7', false)",
        _is("app.other", "7"),
    ),
    Kind("`SET search_path`", "SET search_path = other", _is("search_path", "other")),
    Kind("`SET TIME ZONE`", "SET TIME ZONE 'Asia/Tokyo'", _is("TimeZone", "Asia/Tokyo")),
    Kind(
        "`SET statement_timeout`",
        "SET statement_timeout = 54321",
        _is("statement_timeout", "54321ms"),
    ),
    Kind("`SET ROLE`", "SET ROLE tenant", "SELECT nullif(current_user = 'tenant', false)"),
    Kind(
        "`SET SESSION AUTHORIZATION`",
        "SET SESSION AUTHORIZATION tenant",
        "SELECT nullif(session_user = 'tenant', false)",
    ),
    Kind(
        "`SET SESSION CHARACTERISTICS`",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        _is("default_transaction_read_only", "on"),
    ),
    Kind(
        "a temporary table",
        "CREATE TEMP TABLE mine (n int)",
        "SELECT to_regclass('pg_temp.mine')::text",
    ),
    Kind(
        "`PREPARE`",
        "PREPARE mine AS SELECT 1",
        "SELECT name FROM pg_prepared_statements WHERE name = 'mine'",
    ),
    Kind("`LISTEN`", "LISTEN mine", "SELECT pg_listening_channels()"),
    Kind("a session's advisory lock", "SELECT pg_advisory_lock(7)", LOCKS),
    Kind(
        "a cursor `WITH HOLD`",
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        "SELECT name FROM pg_cursors WHERE name = 'mine'",
    ),
    Kind(
        "`LOAD`",
        "LOAD 'plpgsql'",
        "SELECT name FROM pg_settings WHERE name = 'plpgsql.extra_errors'",
    ),
    Kind("`setseed()`", "SELECT setseed(0.5)", _is_seeded),
    Kind("psycopg's `row_factory`", _rows_as_dicts, _is_dict),
    Kind("psycopg's adapters", _numbers_as_text, _is_text),
    Kind(
        "a setting that a function of the project's sets",
        "SELECT hide('7')",
        _is("app.hidden", "7"),
        hidden=True,
    ),
]


@dataclass(frozen=True)
class Outcome:
    """`lost`: the rest of the request does not find it; `left`: the next request does."""

    lost: bool
    left: bool


def outcome(kind: Kind, alias: str, end_request: Callable[[], object]) -> Outcome:
    """Change the session in one request, and look in that one and in the next.

    There are to be two connections. Some looks are made while another thread has a transaction, on
    the connection that is used next where it can.
    """
    ask(connections[alias], "SELECT 1")
    kind.do(alias)
    inside = _look_again_and_again(kind, alias, lambda: None)
    end_request()
    after = _look_again_and_again(kind, alias, end_request)
    return Outcome(lost=None in inside, left=any(found is not None for found in after))


def _look_again_and_again(kind: Kind, alias: str, end_each: Callable[[], object]) -> list[object]:
    found = []
    # An order that meets both, whether a pool gives the newest connection next or the oldest.
    for busy in (True, False, False, True, False):
        with _busy_thread(alias) if busy else nullcontext():
            found.append(kind.look(alias))
            end_each()
    return found


@contextmanager
def _busy_thread(alias: str) -> Iterator[None]:
    begun, end = Event(), Event()

    def work() -> None:
        wrapper: Any = connections[alias]
        with transaction.atomic(alias):
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT 1")
            begun.set()
            end.wait(20)
        wrapper.close()

    thread = Call(work)
    begun.wait(20)
    try:
        yield
    finally:
        end.set()
        thread.result(within=20)
