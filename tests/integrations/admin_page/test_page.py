"""Who sees the live page, what it says, and that it is there when everything else is in trouble."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connections
from django.http import HttpResponse
from django.test import Client, override_settings
from pytest_django.plugin import DjangoDbBlocker

from abs_orm_app.integrations.admin_page import side_connections
from abs_orm_app.pool.pool import HardenedPool
from abs_orm_app.pool.snapshot import snapshot
from tests.support.pgbouncers import PgBouncer, needs_pgbouncer
from tests.support.pools import Call
from tests.support.projects import SQLITE, STOCK, database, entry
from tests.support.servers import Server, wait_until

PAGE = "/admin/pool/"
SMALL = {"pool": {"min_size": 2, "max_size": 3, "timeout": 20.0}}
IN_TIME = 15.0  # seconds, on a busy machine


@pytest.fixture(scope="module")
def tables(django_db_blocker: DjangoDbBlocker) -> None:
    with django_db_blocker.unblock():
        call_command("migrate", verbosity=0)


@pytest.fixture(autouse=True)
def users(tables: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Real users, in no transaction of the test: the page looks from connections of its own."""
    with django_db_blocker.unblock():
        yield
        User.objects.all().delete()
        Session.objects.all().delete()


def logged_in(**flags: bool) -> Client:
    client = Client()
    client.force_login(User.objects.create_user("somebody", **flags))  # type: ignore[arg-type]
    return client


@pytest.fixture
def staff(users: None) -> Client:
    return logged_in(is_staff=True)


def get(client: Client, path: str = PAGE) -> HttpResponse:
    began = monotonic()
    response: Any = client.get(path)
    assert monotonic() - began < IN_TIME
    assert isinstance(response, HttpResponse)
    return response


def content(client: Client, path: str = PAGE, status: int = 200) -> str:
    response = get(client, path)
    assert response.status_code == status
    return response.content.decode()


def card(html: str, alias: str) -> str:
    """The part of the page about one alias."""
    return html.partition(f'data-alias="{alias}"')[2].partition("</section>")[0]


def pool_of(alias: str) -> HardenedPool:
    pool: HardenedPool = connections[alias].pool  # type: ignore[attr-defined]
    pool.open(wait=True)
    return pool


# Who may see it


@pytest.mark.parametrize("path", [PAGE, f"{PAGE}guide/checks/"])
def test_nobody_sees_anything_without_logging_in(path: str) -> None:
    response = get(Client(), path)
    assert response.status_code == 302
    assert response.headers["Location"] == f"/admin/login/?next={path}"
    assert response.content == b""


@pytest.mark.parametrize("path", [PAGE, f"{PAGE}guide/checks/"])
@pytest.mark.parametrize("flags", [{}, {"is_staff": True, "is_active": False}])
def test_only_active_staff_sees_it(path: str, flags: dict[str, bool]) -> None:
    client = logged_in(**flags)
    assert get(client, path).headers["Location"].startswith("/admin/login/")


def test_staff_needs_no_permission_of_a_model(staff: Client) -> None:
    assert "Connection pools" in content(staff)


def test_it_only_answers_to_looking(staff: Client) -> None:
    assert staff.post(PAGE).status_code == 405


def test_it_is_not_cached(staff: Client) -> None:
    assert "no-store" in get(staff).headers["Cache-Control"]


# What it says


@override_settings(USE_THOUSAND_SEPARATOR=True)
def test_it_shows_what_a_pool_is_doing_and_who_holds_what(staff: Client, server: Server) -> None:
    with database(entry(server.conninfo, OPTIONS=SMALL)) as alias:
        assert 'data-state="unused"' in content(staff)
        pool = pool_of(alias)
        conn = pool.getconn()
        backend = conn.info.backend_pid
        shown = card(content(staff), alias)
        pool.putconn(conn)
    assert 'data-state="ok"' in shown
    assert "1 in use, 1 idle and 0 being opened, of 3 connections at most" in shown
    assert f">{backend}</td>" in shown
    assert "MainThread" in shown


def test_it_takes_no_connection_from_the_pools(staff: Client, server: Server) -> None:
    with database(entry(server.conninfo, OPTIONS=SMALL)) as alias:
        pool = pool_of(alias)
        content(staff)
        assert snapshot(pool).checkouts == 0
        wait_until(lambda: server.sessions() == 2, "the page's own session to end")


def test_it_says_when_a_pool_is_exhausted_and_what_to_do(staff: Client, server: Server) -> None:
    with database(entry(server.conninfo, OPTIONS=SMALL)) as alias:
        pool = pool_of(alias)
        taken = [pool.getconn() for _ in range(3)]
        assert ">overflow in use<" in card(content(staff), alias)
        waiting = Call(pool.getconn)
        wait_until(lambda: snapshot(pool).waiting == 1, "the client to wait")
        shown = card(content(staff), alias)
        pool.putconn(taken.pop())
        for conn in (*taken, waiting.result(IN_TIME)):
            pool.putconn(conn)
    assert 'data-state="exhausted"' in shown
    link = re.search(r'href="([^"#]*)#(pool-exhausted)"', shown)
    assert link
    assert f"id='{link[2]}'" in content(staff, link[1])


def test_it_shows_the_settings_and_what_they_became(staff: Client) -> None:
    shown = card(content(staff), "default")
    assert "No pool: each request opens a connection and closes it." in shown
    for text in ("DB_POOL_MODE", "null", "environment", "CONN_MAX_AGE", "not used in null mode"):
        assert text in shown


def test_it_shows_where_the_pool_is_not_as_configured(staff: Client, server: Server) -> None:
    with database(entry(server.conninfo, OPTIONS=SMALL)) as alias:
        pool_of(alias).resize(2, 7)
        assert "in effect: 5" in card(content(staff), alias)


@override_settings(DEBUG=False)
def test_it_links_each_finding_to_what_the_docs_say_of_it(staff: Client) -> None:
    html = content(staff)
    links = re.findall(r'href="([^"#]*)#([EWI][0-9]+)"', html)
    assert "W011" in [anchor for _, anchor in links]  # pooling is off
    for path, anchor in links:
        assert f"id='{anchor}'" in content(staff, path)


def findings(html: str) -> set[str]:
    return set(re.findall(r">abs_orm_app\.([EWI][0-9]+)<", html))


@needs_pgbouncer
@pytest.mark.parametrize("open_console", [True, False])
def test_behind_a_pooler_it_finds_what_is_wrong_with_that(
    staff: Client, server: Server, open_console: bool
) -> None:
    large = {"pool": {"min_size": 200, "max_size": 300}}  # the server takes 100
    with PgBouncer(server, open_console=open_console, default_pool_size=5) as pooler:
        with database(entry(pooler.conninfo, OPTIONS=large)):
            found = findings(content(staff))
        with database(entry(pooler.conninfo, ABS_ORM_APP={"mode": "pgbouncer"})):
            as_meant = findings(content(staff))
    assert {"W031", "W035", "I031"} <= found
    assert ("W037" in found) == open_console
    assert "E021" not in found
    assert "W036" not in as_meant


@needs_pgbouncer
def test_a_pooler_without_a_free_connection_does_not_hold_up_the_page(
    staff: Client, server: Server
) -> None:
    one = PgBouncer(server, open_console=False, default_pool_size=1, pool_mode="session")
    with one as pooler, database(entry(pooler.conninfo, OPTIONS=SMALL)) as alias:
        html = content(staff)
    assert f"Server of {alias}" not in html
    assert 'data-database="postgres"' in html


@override_settings(DEBUG=False)
def test_it_does_not_take_its_own_limits_for_those_of_the_sessions(
    staff: Client, server: Server
) -> None:
    with database(entry(server.conninfo, OPTIONS=SMALL)):
        assert "I021" in findings(content(staff))  # statement_timeout is off


@override_settings(USE_THOUSAND_SEPARATOR=True)  # which is for amounts, not for process ids
def test_it_shows_everybody_else_on_the_server(staff: Client, server: Server) -> None:
    other = "reports@db-1:77"
    with (
        database(entry(server.conninfo, OPTIONS=SMALL)),
        psycopg.connect(server.conninfo, application_name=other) as reports,
        psycopg.connect(server.conninfo, application_name="shop@web-2:12") as shop,
    ):
        blocker, waiter = reports.info.backend_pid, shop.info.backend_pid
        reports.execute("create table lot ()")
        reports.commit()
        reports.execute("lock table lot")
        blocked = Call(shop.execute, "lock table lot")
        wait_until(lambda: server.sessions() == 2, "both sessions")
        shown = ""

        def is_seen() -> bool:
            nonlocal shown
            shown = content(staff).partition('data-database="postgres"')[2]
            return "1 blocked" in shown

        wait_until(is_seen, "the lock to be seen", IN_TIME)
        reports.rollback()
        blocked.result(IN_TIME)
    assert f"{blocker} reports db-1, idle in transaction for" in shown
    assert f"{waiter} shop web-2" in shown
    assert "lock table" not in shown


def test_two_aliases_of_one_database_show_it_once(staff: Client, server: Server) -> None:
    with (
        database(entry(server.conninfo, OPTIONS=SMALL), "one"),
        database(entry(server.conninfo, OPTIONS=SMALL), "two"),
    ):
        html = content(staff)
    assert "aliases one, two" in html
    assert html.count("data-database=") == 2  # with that of the default alias


def test_an_alias_without_a_pool_of_ours_has_its_place_too(staff: Client, server: Server) -> None:
    with (
        database(entry(server.conninfo, STOCK, OPTIONS=SMALL), "stock"),
        database(SQLITE, "lite"),
    ):
        html = content(staff)
        connections["stock"].pool.open(wait=True)  # type: ignore[attr-defined]
        with connections["stock"].cursor():
            in_use = card(content(staff), "stock")
    assert "It is not PostgreSQL" in card(html, "lite")
    assert 'data-state="unused"' in card(html, "stock")
    assert 'data-state="stock"' in in_use
    assert "2 connections, 1 of them idle; 0 requests wait." in in_use


def test_a_pool_that_cannot_be_is_explained(staff: Client, server: Server) -> None:
    wrong = entry(server.conninfo, OPTIONS={"pool": {"min_size": 5, "max_size": 2}})
    with database(wrong) as alias:
        html = content(staff)
    assert "max_size" in card(html, alias)
    assert "abs_orm_app.E005" in html


def test_no_secret_is_on_the_page(staff: Client, server: Server) -> None:
    secretive = entry(server.conninfo, OPTIONS=SMALL, PASSWORD="do-not-tell")
    with database(secretive):
        server.stop()
        html = content(staff)
    assert "not reached" in html
    assert "do-not-tell" not in html


# When the database is in trouble


def test_a_server_of_another_alias_that_hangs_does_not_hold_up_the_page(
    staff: Client, server: Server
) -> None:
    with database(entry(server.conninfo, OPTIONS=SMALL)) as alias:
        pool_of(alias)
        server.suspend()
        try:
            html = content(staff)
        finally:
            server.resume()
    assert f"Server of {alias}" in html
    assert "2 idle" in card(html, alias)


@contextmanager
def locked(table: str) -> Iterator[None]:
    """Hold a lock that everybody waits for who reads the table, and lose patience soon."""
    parameters: Any = connections["default"].get_connection_params()
    with psycopg.connect(**parameters) as blocker, pytest.MonkeyPatch.context() as patch:
        blocker.execute(f"lock table {table}")
        patch.setattr(side_connections, "STATEMENT_TIMEOUT", 0.5)
        yield


def sessions_waiting() -> int:
    with connections["default"].cursor() as cursor:
        cursor.execute("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
        return int(cursor.fetchone()[0])


def test_who_was_let_in_sees_this_process_while_the_database_does_not_answer(
    staff: Client, server: Server
) -> None:
    with database(entry(server.conninfo, OPTIONS=SMALL)) as alias:
        pool_of(alias)
        content(staff)
        with locked("django_session"):
            html = content(staff, status=503)
            # The server has given up as well: a page that is reloaded leaves nobody behind.
            wait_until(lambda: sessions_waiting() == 0, "the query to end", IN_TIME)
        assert "The database does not answer" in html
        assert "2 idle" in card(html, alias)
        assert "Welcome" not in html
    assert "The database does not answer" not in content(staff)


def test_a_password_that_nobody_gives_is_said_to_who_was_let_in(staff: Client) -> None:
    content(staff)
    with pytest.MonkeyPatch.context() as patch:
        extra = {"password_provider": "no.such.provider"}
        patch.setitem(connections.settings["default"], "ABS_ORM_APP", extra)
        html = content(staff, status=503)
    assert "DB_PASSWORD_PROVIDER cannot be imported" in html


def test_others_see_nothing_while_the_database_does_not_answer(
    staff: Client, server: Server
) -> None:
    stranger = Client()
    stranger.cookies["sessionid"] = "made-up-session"
    with database(entry(server.conninfo, OPTIONS=SMALL)) as alias, locked("django_session"):
        for client in (stranger, staff):  # staff has not been here before
            html = content(client, status=503)
            assert "manage.py check_pool" in html
            assert alias not in html


def test_a_pass_is_good_with_its_session_alone(staff: Client) -> None:
    content(staff)
    thief = Client()
    thief.cookies["abs_orm_app_staff"] = staff.cookies["abs_orm_app_staff"].value
    thief.cookies["sessionid"] = "another-session"
    with locked("django_session"):
        assert "nobody can be recognised" in content(thief, status=503)
    staff.logout()
    staff.cookies["abs_orm_app_staff"] = thief.cookies["abs_orm_app_staff"].value
    assert get(staff).status_code == 302


def test_a_pass_has_an_end(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    content(staff)
    monkeypatch.setattr("abs_orm_app.integrations.admin_page.access.GOOD_FOR", -1)
    with locked("django_session"):
        assert "nobody can be recognised" in content(staff, status=503)


def test_a_pass_is_not_for_scripts_nor_for_other_sites(staff: Client) -> None:
    content(staff)
    cookie = staff.cookies["abs_orm_app_staff"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Strict"
    assert cookie["path"] == PAGE
