"""The troubleshooting page has the words that are printed: rendered by the code, or by a server."""

from __future__ import annotations

import inspect
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg_pool import ConnectionPool, PoolTimeout

import abs_orm_app
from abs_orm_app.apps import AbsOrmAppConfig
from abs_orm_app.checks.guide import find_entry
from abs_orm_app.environment import SettingsError, database_from_env
from abs_orm_app.pool import messages
from abs_orm_app.pool.holders import Holder
from abs_orm_app.pool.server_errors import Fault, classify
from tests.support.projects import STOCK, entry
from tests.support.servers import PASSWORD_OVER_TCP, Server, wait_until

pytestmark = pytest.mark.server(
    {"max_connections": "6", "superuser_reserved_connections": "3"}
    | dict.fromkeys(("max_wal_senders", "reserved_connections"), "0"),
    hba=PASSWORD_OVER_TCP,
    roles=["app LOGIN PASSWORD 'right'"],
)
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+)\n([^#]*(?:#(?!# )[^#]*)*)", PAGE, re.MULTILINE))
SQLALCHEMY = "QueuePool limit of size … reached"
NAME = "default"


def quotes() -> Iterator[tuple[str, str]]:
    """Each quotation, with the section that it stands in."""
    for title, text in SECTIONS.items():
        for lines in re.findall(r"(?:^> ?.*\n)+", text, re.MULTILINE):
            yield title, re.sub(r"^> ?", "", lines, flags=re.MULTILINE)


def rows() -> Iterator[tuple[str, str]]:
    """Each message of the table, with the entry that it leads to; "" if there is none."""
    for cell, explanation in re.findall(r"^\| (`.+`.*) \| (.+) \|$", PAGE, re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", cell):
            link = re.search(r"\(#([\w-]+)\)", explanation)
            yield message, link[1] if link else ""


def plain(text: str) -> str:
    return " ".join(text.split())


def is_said(quote: str, texts: list[str]) -> bool:
    """True if one of the texts has these words; "…" stands for any."""
    wanted = ".*".join(map(re.escape, map(str.strip, plain(quote).split("…"))))
    return any(re.search(wanted, plain(text)) for text in texts)


# What the pool says


def held(line: int, name: str, file: str = "views") -> tuple[tuple[Any, int], ...]:
    """The stack of a checkout at such a line."""
    code = compile("0", f"/srv/shop/{file}.py", "exec")
    return ((code.replace(co_name=name, co_firstlineno=line), 10_000),)


def fault(error: Exception | str) -> Fault:
    error = psycopg.OperationalError(error) if isinstance(error, str) else error
    return Fault(error, permanent=False, since=0.0, at=0.0, retry_after=1.0)


REFUSED = fault('connection to server at "::1", port 5432 failed: Connection refused')
FILES = messages.of_fault(fault(OSError(24, "Too many open files")))
FULL = fault("connection failed: FATAL:  sorry, too many clients already")
POOL = {"size": 20, "limit": 30, "idle": 0, "opening": 0}
BUSY = Holder(21248, "ThreadPoolExecutor-1_7", 84.2, held(12, "detail"))
SYNC = Holder(7624, "Thread-7 (sync)", 10.1, held(33, "pull", "sync") + held(12, "run", "sync"))
LOST = Holder(7624, "Thread-7 (sync)", 10.1, None)
EXHAUSTED = messages.exhausted(30, in_transaction=0, unused=24)
ORDERS = messages.held_by(["GET /orders/"] * 24 + ["task shop.sync"] * 6)
RAISED = ValueError("no")


def timed_out(cause: messages.Cause, **given: Any) -> str:
    why = messages.why_nothing_came(NAME, cause, **POOL | {"longest": None, "held_by": ""} | given)
    return messages.pool_timeout(30, why)


# Each function of `messages` that makes a text, called as the pool calls it.
SAID: dict[Callable[..., object], list[str]] = {
    messages.why_nothing_came: [
        timed_out(EXHAUSTED, in_use=30, waiting=12, longest=BUSY, held_by=ORDERS),
        timed_out(messages.exhausted(30, in_transaction=6, unused=0), in_use=30, waiting=1),
        timed_out(messages.of_fault(FULL), in_use=3, waiting=4),
        timed_out(messages.no_answer("db.example:5432", silent=True), in_use=1, waiting=1),
        timed_out(messages.slow_or_locked(6, 6), in_use=6, waiting=1),
        timed_out(messages.opening(2.0), in_use=0, waiting=1),
        timed_out(FILES, in_use=0, waiting=1),
    ],
    messages.too_many_requests: [messages.too_many_requests(NAME, 7)],
    messages.left_in_transaction: [messages.left_in_transaction(NAME)],
    messages.configure_failed: [messages.configure_failed(NAME, RAISED)],
    messages.source_failed: [messages.source_failed(NAME, RAISED)],
    messages.check_refuses: [messages.check_refuses(NAME, RAISED)],
    messages.check_accepts: [messages.check_accepts(NAME, 4.2)],
    messages.check_gave_none: [messages.check_gave_none(in_time=True)],
    messages.cannot_connect: [messages.cannot_connect(NAME, REFUSED)],
    messages.trouble_begins: [
        messages.trouble_begins(NAME, messages.read_only("db.example:5432", "standby"), "")
    ],
    messages.requests_fail: [messages.requests_fail(NAME, EXHAUSTED, ORDERS)],
    messages.trouble_goes_on: [messages.trouble_goes_on(NAME, EXHAUSTED, 60, 7, 3)],
    messages.trouble_ends: [messages.trouble_ends(NAME, EXHAUSTED, 84.2, 7, 3)],
    messages.connected_again: [messages.connected_again(NAME, 4.2)],
    messages.connection_lost: [messages.connection_lost(NAME, LOST)],
    messages.held_too_long: [messages.held_too_long(NAME, SYNC, more=11)],
    messages.cannot_return: [messages.cannot_return(NAME, "x", other=None, lost=False)],
    messages.rolled_back: [messages.rolled_back(NAME)],
    messages.returned_active: [messages.returned_active(NAME)],
    messages.returned_spoiled: [messages.returned_spoiled(NAME)],
    messages.thread_gone: [messages.thread_gone()],
    messages.reset_failed: [messages.reset_failed(NAME, RAISED)],
    messages.attempt_hung: [messages.attempt_hung(NAME, "connect")],
    messages.housekeeping_died: [messages.housekeeping_died()],
    messages.housekeeping_failed: [messages.housekeeping_failed(NAME, RAISED)],
    messages.observer_failed: [messages.observer_failed(NAME)],
}
PARTS = {messages.pool_timeout, messages.held_by, messages.first_line}  # of those above


def test_each_message_of_the_pool_is_rendered_here() -> None:
    mine = inspect.getmembers(messages, inspect.isfunction)
    named = {
        function
        for name, function in mine
        if function.__module__ == messages.__name__ and not name.startswith("_")
    }
    texts = {each for each in named if inspect.signature(each).return_annotation == "str"}
    assert texts - PARTS == SAID.keys()


# What others say


def connected(conninfo: str) -> psycopg.Connection[Any]:
    """The server counts a session that it has refused for a moment longer."""
    made: list[psycopg.Connection[Any]] = []

    def connects() -> bool:
        with suppress(psycopg.OperationalError):
            made.append(psycopg.connect(conninfo))
        return bool(made)

    wait_until(connects, "a free slot")
    return made[0]


def theirs(server: Server) -> Iterator[str]:
    """What PostgreSQL, psycopg, psycopg_pool, Django and the settings say, each in such a case."""

    def refused(conninfo: str) -> str:
        with pytest.raises(psycopg.OperationalError) as caught:
            psycopg.connect(conninfo)
        return str(caught.value)

    app = server.conninfo.replace("user=postgres", "user=app")
    yield refused(f"{server.tcp_conninfo} user=app password=wrong")
    yield refused(f"{server.conninfo} user=nobody")
    yield refused(f"{server.conninfo} dbname=none")
    with ExitStack() as stack:
        for conninfo in [app] * 3 + [server.conninfo] * 3:
            yield refused(app) if conninfo != app else ""
            stack.enter_context(connected(conninfo))
        yield refused(app)
    with psycopg.connect(server.conninfo, autocommit=True) as conn:
        conn.execute("SET default_transaction_read_only = on")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as written:
            conn.execute("CREATE TABLE lot ()")
        yield str(written.value)
        yield str(written.value).replace("CREATE TABLE", "INSERT")
        conn.execute("SET default_transaction_read_only = off")
        conn.execute("CREATE TABLE lot ()")
        conn.execute("SET statement_timeout = 10")
        with pytest.raises(psycopg.errors.QueryCanceled) as slow:
            conn.execute("SELECT pg_sleep(60)")
        yield str(slow.value)
        conn.execute("SET statement_timeout = 0")
        conn.execute("SET lock_timeout = 10")
        with server.admin() as blocker, blocker.transaction():
            blocker.execute("LOCK TABLE lot")
            with pytest.raises(psycopg.errors.LockNotAvailable) as locked:
                conn.execute("DROP TABLE lot")
        yield str(locked.value)
        with pytest.raises(psycopg.OperationalError) as ended:
            conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        yield str(ended.value)
        with pytest.raises(psycopg.OperationalError) as closed:
            conn.execute("SELECT 1")
        yield str(closed.value)
    with psycopg.connect(server.conninfo) as conn:
        os.kill(conn.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError) as killed:
            conn.execute("SELECT 1")
        yield str(killed.value)
    server.stop("immediate")  # it may still be recovering, and would not end for long
    with ConnectionPool(server.conninfo, open=False, min_size=0, max_size=1) as pool:
        with pytest.raises(PoolTimeout) as late:
            pool.getconn(timeout=0.1)
        yield str(late.value).replace("0.10", "30.00")
    given = entry(server.conninfo, STOCK, OPTIONS={"pool": True}, CONN_MAX_AGE=60)
    with pytest.raises(ImproperlyConfigured) as persistent:
        DatabaseWrapper(given | {"TIME_ZONE": None}).pool  # noqa: B018
    yield str(persistent.value)
    with pytest.raises(SettingsError) as wrong:
        database_from_env(
            environ={"DATABASE_URL": server.url, "DB_POOL_SIZE": "x", "DB_POOL_TIMEOUT": "y"}
        )
    yield f"{type(wrong.value).__name__}: {wrong.value}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings.DATABASES, "default", {"ENGINE": "abs_orm_app.backends.postgres"})
        with pytest.raises(SettingsError) as unknown:
            AbsOrmAppConfig("abs_orm_app", abs_orm_app)
    yield str(unknown.value)


def test_each_message_on_the_page_is_one_that_is_printed(server: Server) -> None:
    texts = [text for said in SAID.values() for text in said] + list(theirs(server))
    named = [message for message, _ in rows() if message != SQLALCHEMY]
    known = [quote for _, quote in quotes()] + named + re.findall("`(pool 'default'[^`]+)`", PAGE)
    assert len(known) > 40
    for each in known:
        assert is_said(each, texts), each


def test_each_message_on_the_page_is_explained_by_the_entry_that_it_leads_to() -> None:
    for message, topic in rows():
        if topic:
            assert find_entry(message.replace("…", "x")).topic == topic, message
    for title in ("Server down", "Wrong credentials"):
        (also,) = re.findall(r"^Also (.+?)\.$", SECTIONS[title], re.MULTILINE | re.DOTALL)
        for message in re.findall(r"`([^`]+)`", also):
            topic = title.lower().replace(" ", "-")
            assert classify(plain(message)).entry == topic, message
