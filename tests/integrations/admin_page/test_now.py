"""What is wrong now: the top of the page, and the state of each pool, on real pools and servers."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from time import sleep
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.core.signals import request_finished, request_started
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import include, path
from psycopg_pool import PoolTimeout

from abs_orm_app.facts import wording
from abs_orm_app.facts.snapshot import snapshot
from abs_orm_app.integrations.admin_page import history, neighbours
from abs_orm_app.pool.housekeeping import TICK
from abs_orm_app.pool.liveness import ANSWERING
from abs_orm_app.pool.pool import HardenedPool
from abs_project.demo import PAGE
from tests.support.databases import ask, pool_of
from tests.support.pages import IN_TIME, SMALL, card, content, now, state
from tests.support.pools import Call, give_back
from tests.support.projects import database, entry
from tests.support.servers import Server, wait_until
from tests.support.tasks import STREAM, held_by_tasks

pytestmark = pytest.mark.usefixtures("users", "each_view_asks")

release = threading.Event()


def hold(_request: HttpRequest, order: int) -> HttpResponse:
    """Hold a connection of the pool until the test lets go."""
    with connections["other"].cursor():
        release.wait(IN_TIME)
    connections["other"].close()
    return HttpResponse(f"order {order}")


async def waits(_request: HttpRequest, order: int) -> HttpResponse:
    """Ask the database, and then wait for something else until the test lets go."""
    await sync_to_async(lambda: ask(connections["other"]))()
    while not release.is_set():
        await asyncio.sleep(0.01)
    return HttpResponse(f"order {order}")


urlpatterns = [
    path("waits/<int:order>/", waits),
    path("orders/<int:order>/", hold),
    path("", include("abs_project.urls")),
]


def title(html: str) -> str:
    return html.partition("<title>")[2].partition("</title>")[0]


@contextmanager
def held_by_views(alias: str, number: int, waiting: int = 0) -> Iterator[HardenedPool]:
    """Requests that hold so many connections, while others wait."""
    pool = pool_of(alias)
    release.clear()
    with override_settings(ROOT_URLCONF=__name__):
        calls = [Call(Client().get, f"/orders/{order}/") for order in range(number + waiting)]
        try:
            wait_until(lambda: snapshot(pool).in_use == number, "the requests to hold connections")
            wait_until(lambda: snapshot(pool).waiting == waiting, "the requests to wait")
            yield pool
        finally:
            release.set()
        for call in calls:
            assert call.result(IN_TIME).status_code == 200


def test_nothing_is_wrong_with_a_pool_that_serves(staff: Client, pool: HardenedPool) -> None:
    html = content(staff)
    assert now(html) == "OK. No request waits, and every database answers."
    assert title(html).startswith("OK | Connection pools")
    assert state(html, pool.name) == "ok"


def test_overflow_is_in_use_only_while_more_than_the_size_is(
    staff: Client, pool: HardenedPool
) -> None:
    taken = [pool.getconn() for _ in range(3)]
    assert state(content(staff), pool.name) == "overflow"
    give_back(pool, taken)
    assert snapshot(pool).overflow == 1  # it is open still, and idle
    assert state(content(staff), pool.name) == "ok"


def test_a_database_that_does_not_answer_is_not_ok(
    staff: Client, server: Server, pool: HardenedPool
) -> None:
    server.stop()
    html = content(staff)
    assert state(html, pool.name) == "failed"
    assert now(html).startswith("other: the server cannot be reached. ")
    assert title(html).startswith("\N{WARNING SIGN} other: the server cannot be reached | ")


def test_an_exhausted_pool_is_told_with_what_holds_it(staff: Client, server: Server) -> None:
    history.keep()
    with (
        database(entry(server.conninfo, OPTIONS=SMALL)) as alias,
        held_by_views(alias, 3, waiting=2) as pool,
    ):
        wait_until(lambda: len(history._looks.get(pool, ())) >= 3, "some looks", 20 * TICK)
        html = content(staff)
    said = now(html)
    assert re.fullmatch(
        r"other: the pool is exhausted: all 3 connections are in use\. 2 requests wait for a"
        r" connection(, the longest for at least [\d.]+ s)?; 3 of 3 connections are held by"
        r" GET /orders/<int:order>/\.",
        said,
    )
    assert title(html).startswith("\N{WARNING SIGN} other: exhausted | ")
    assert state(html, alias) == "exhausted"
    link = re.search(r'href="([^"]*/pool-exhausted/)"', card(html, alias))
    assert link
    assert "<h1>Pool exhausted</h1>" in content(staff, link[1])


def test_holders_are_grouped_by_view_and_line(staff: Client, server: Server) -> None:
    given = entry(server.conninfo, OPTIONS=SMALL, ABS_ORM_APP={"leak_seconds": 60.0})
    with database(given) as alias, held_by_views(alias, 2) as pool:
        conn = pool.getconn()
        backend = conn.info.backend_pid
        shown = unescape(card(content(staff), alias))
        pool.putconn(conn)
    rows = re.findall(r"<tr id=\"holder-.*?</tr>", shown, re.DOTALL)
    assert len(rows) == 2
    assert '<td class="number">2</td>' in rows[0]
    assert "GET /orders/<int:order>/" in rows[0]
    assert f"{__name__}.hold" in rows[0]
    assert re.search(r"test_now\.py:\d+ in hold", rows[0])
    assert "/orders/0/" not in shown  # what stands in an address may be a secret
    assert f"GET {PAGE}" in rows[1]
    assert str(backend) in rows[1]


def test_a_thread_without_a_request_is_named(staff: Client, pool: HardenedPool) -> None:
    done = threading.Event()

    def work() -> None:
        with pool.connection():
            done.wait(IN_TIME)

    thread = threading.Thread(target=work, name="nightly import")
    thread.start()
    wait_until(lambda: snapshot(pool).in_use == 1, "the thread to take a connection")
    shown = card(content(staff), pool.name)
    done.set()
    thread.join(IN_TIME)
    assert "thread nightly import" in shown


def test_a_task_is_named_with_what_it_needs(staff: Client, pool: HardenedPool) -> None:
    with held_by_tasks(pool.name, "BEGIN", "BEGIN", "SELECT 1", waiting=1):
        html = content(staff)
        [row] = [row for row in neighbours._own() if row.alias == pool.name]
        with pytest.raises(PoolTimeout, match=f"Task {STREAM!r} has held a connection for"):
            pool.getconn(0.1)
    shown = unescape(card(html, pool.name))
    [holders] = re.findall(r"<tr id=\"holder-.*?</tr>", shown, re.DOTALL)
    assert f"task {STREAM}" in holders
    assert '<td class="number">3</td>' in holders
    assert "2: a transaction" in holders
    assert f"3 of 3 connections are held by task {STREAM}." in now(html)
    assert row.longest.startswith(f"task {STREAM!r}, ")


def test_what_pins_a_connection_is_shown_with_its_place(staff: Client, server: Server) -> None:
    done = threading.Event()
    given = entry(server.conninfo, OPTIONS=SMALL, ABS_ORM_APP={"leak_seconds": 60.0})
    with database(given) as alias:
        pool = pool_of(alias)

        def work(*statements: str) -> None:
            for statement in statements:
                ask(connections[alias], statement)
            done.wait(IN_TIME)
            connections[alias].close()

        calls = [Call(work, "SELECT 1"), Call(work, "SET app.tenant = 'secret'")]
        wait_until(lambda: snapshot(pool).unused == 1, "the query")
        wait_until(lambda: snapshot(pool).pinned == {"setting": 1}, "the change")
        shown = unescape(card(content(staff), alias))
        done.set()
        for call in calls:
            call.result(IN_TIME)
    (row,) = re.findall(r"<tr id=\"holder-.*?</tr>", shown, re.DOTALL)
    assert re.search(r"1: SET app\.tenant at tests/support/databases\.py:\d+ in ask[;<]", row)
    assert "1: nothing" in row
    assert "secret" not in shown


def test_connections_that_are_idle_while_requests_wait_are_a_finding(
    staff: Client, pool: HardenedPool
) -> None:
    history.keep()
    done = threading.Event()
    history.look(pool)

    def view() -> None:
        request_started.send(sender=None)
        ask(connections[pool.name])
        done.wait(IN_TIME)
        request_finished.send(sender=None)

    assert "abs_orm_app.W005" not in content(staff)
    calls = [Call(view) for _ in range(4)]
    wait_until(lambda: snapshot(pool).unused == 3, "the requests to do something else")
    wait_until(lambda: snapshot(pool).waiting == 1, "the request to wait")
    wait_until(lambda: "abs_orm_app.W005" in content(staff), "the finding")
    done.set()
    for call in calls:
        call.result(IN_TIME)


@override_settings(ROOT_URLCONF=__name__)
def test_async_views_that_wait_for_something_else_are_the_same_finding(
    staff: Client, pool: HardenedPool
) -> None:
    history.keep()
    release.clear()

    async def request(number: int) -> None:
        path, host = f"/waits/{number}/", (b"host", b"localhost")
        scope = {"type": "http", "method": "GET", "path": path, "headers": [host]}
        received: asyncio.Queue[Any] = asyncio.Queue()
        received.put_nowait({"type": "http.request"})
        sent: list[Any] = []

        async def send(event: Any) -> None:
            sent.append(event)

        await get_asgi_application()(scope, received.get, send)
        assert sent[0]["status"] == 200

    async def requests() -> None:
        await asyncio.gather(*(request(number) for number in range(4)))

    history.look(pool)
    call = Call(asyncio.run, requests())
    wait_until(lambda: snapshot(pool).unused == 3, "the requests to do something else")
    wait_until(lambda: snapshot(pool).waiting == 1, "the request to wait")
    wait_until(lambda: "abs_orm_app.W005" in content(staff), "the finding")
    release.set()
    call.result(IN_TIME)


def test_requests_that_timed_out_are_told_for_a_minute(staff: Client, pool: HardenedPool) -> None:
    history.keep()
    history.look(pool)
    taken = [pool.getconn() for _ in range(3)]
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.05)
    give_back(pool, taken)
    html = content(staff)
    assert "other: 1 request failed to get a connection in the last minute." in now(html)
    assert 'class="timeout"' in card(html, pool.name)


def test_sessions_that_wait_for_a_lock_are_told_with_what_blocks_them(
    staff: Client, server: Server
) -> None:
    with (
        database(entry(server.conninfo, OPTIONS=SMALL)),
        psycopg.connect(server.conninfo) as blocker,
        psycopg.connect(server.conninfo) as waiter,
    ):
        blocker.execute("create table lot ()")
        blocker.commit()
        blocker.execute("lock table lot")
        blocked = Call(waiter.execute, "lock table lot")
        said = ""

        def is_told() -> bool:
            nonlocal said
            said = now(content(staff))
            return "1 session waits for a lock" in said

        wait_until(is_told, "the lock to be told", IN_TIME)
        pid = blocker.info.backend_pid
        blocker.rollback()
        blocked.result(IN_TIME)
    assert f"; server process {pid}, idle in transaction for " in said
    assert said.endswith(f" blocks it. To end it: SELECT pg_terminate_backend({pid});")


def test_a_transaction_that_is_idle_elsewhere_is_no_cause_of_slow_statements(
    staff: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wording, "LONG", 4.0)
    with (
        database(entry(server.conninfo, OPTIONS=SMALL)) as alias,
        psycopg.connect(server.conninfo) as importer,
    ):
        importer.execute("select 1")
        sleep(wording.LONG)
        pool = pool_of(alias)
        taken = [pool.getconn() for _ in range(3)]
        calls = [Call(conn.execute, "select pg_sleep(60)") for conn in taken]
        calls.append(Call(pool.getconn))
        wait_until(lambda: pool.core.reached[1] == ANSWERING, "the server to be asked", IN_TIME)
        said = now(content(staff))
        server.cancel()
        for conn, call in zip(taken, calls, strict=False):
            call.join(IN_TIME)
            conn.rollback()
            pool.putconn(conn)
        pool.putconn(calls[-1].result(IN_TIME))
    assert said.startswith("other: ")
    assert "slow statements" in said
    assert "idle in a transaction" not in said


def test_a_server_without_a_connection_left_is_told(staff: Client, server: Server) -> None:
    with server.admin() as admin:
        admin.execute("create role app login connection limit 3")
    given = entry(f"{server.conninfo} user=app", OPTIONS=SMALL)
    given["USER"] = "app"
    with database(given) as alias:
        pool = pool_of(alias)
        assert "all connections" not in now(content(staff))
        taken = [pool.getconn() for _ in range(2)]
        html = content(staff)
        extra = psycopg.connect(f"{server.conninfo} user=app")
        full = now(content(staff))
        extra.close()
        give_back(pool, taken)
    assert state(html, alias) == "ok"
    assert "too many connections for role" in full


def test_findings_are_about_the_configuration(staff: Client, server: Server) -> None:
    with database(entry(server.conninfo, OPTIONS={"pool": {"min_sise": 4}})):
        html = content(staff)
    assert "<h2>Findings about the configuration</h2>" in html


def test_names_that_the_server_gives_cannot_hide_or_reorder_the_text(
    staff: Client, server: Server
) -> None:
    name = "sh\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}op"
    with server.admin() as admin:
        admin.execute(psycopg.sql.SQL("create database {}").format(psycopg.sql.Identifier(name)))
    given = {**entry(server.conninfo, OPTIONS=SMALL), "NAME": name}
    with database(given):
        html = content(staff)
    assert "All sessions in sh [2J op" in html
    assert "\x1b" not in html
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in html
