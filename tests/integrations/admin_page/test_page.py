"""What the live page says of pools, their servers, and everybody who is connected."""

from __future__ import annotations

import re

import psycopg
import pytest
from django.db import connections
from django.test import Client, override_settings

from abs_orm_app.facts.snapshot import snapshot
from abs_orm_app.pool import HardenedPool
from tests.support.databases import pool_of
from tests.support.pages import IN_TIME, SMALL, card, content
from tests.support.pgbouncers import PgBouncer, needs_pgbouncer
from tests.support.pools import Call
from tests.support.projects import SQLITE, STOCK, database, entry
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.usefixtures("users", "each_view_asks")


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
    assert "GET /admin/abs_orm_app/pools/" in shown  # which this thread is serving, too


def test_it_shows_which_servers_a_pool_is_connected_to(staff: Client, server: Server) -> None:
    with database(entry(server.tcp_conninfo, OPTIONS=SMALL)) as alias:
        pool = pool_of(alias)
        assert f"2 connections to 127.0.0.1:{server.port}, primary<" in card(content(staff), alias)
        conn = pool.getconn()
        conn.execute("SET default_transaction_read_only = on")
        pool.placement.look(conn._pool_entry, conn)  # type: ignore[attr-defined]
        shown = card(content(staff), alias)
        pool.putconn(conn)
    assert f"1 connection to 127.0.0.1:{server.port}, primary" in shown
    assert f"1 connection to 127.0.0.1:{server.port}, read-only (not wanted: replaced" in shown


@pytest.mark.parametrize(("zone", "name"), [("Asia/Kolkata", "IST"), ("UTC", "UTC")])
def test_the_clock_has_a_time_zone(staff: Client, zone: str, name: str) -> None:
    with override_settings(TIME_ZONE=zone):
        html = content(staff)
    assert re.search(rf"<time [^>]*>[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}} {name}</time>", html)


def test_it_takes_no_connection_from_the_pools(
    staff: Client, server: Server, pool: HardenedPool
) -> None:
    content(staff)
    assert snapshot(pool).checkouts == 0
    wait_until(lambda: server.sessions() == 2, "the page's own session to end")


def test_it_shows_the_settings_and_what_they_became(staff: Client) -> None:
    shown = card(content(staff), "default")
    assert "No pool: each request opens a connection and closes it." in shown
    for text in ("DB_POOL_MODE", "null", "environment", "CONN_MAX_AGE", "not used in null mode"):
        assert text in shown


def test_it_shows_where_the_pool_is_not_as_configured(staff: Client, pool: HardenedPool) -> None:
    pool.resize(2, 7)
    assert "in effect: 5" in card(content(staff), pool.name)


@override_settings(DEBUG=False)
def test_it_links_each_finding_to_what_the_docs_say_of_it(staff: Client) -> None:
    html = content(staff)
    links = re.findall(r'href="([^"]*/([EWI][0-9]+)/)"', html)
    assert "W011" in [number for _, number in links]  # pooling is off
    for path, number in links:
        assert f"<h1>{number}: " in content(staff, path)


def findings(html: str) -> set[str]:
    return set(re.findall(r">abs_orm_app\.([EWI][0-9]+)<", html))


@needs_pgbouncer
def test_behind_a_pooler_it_finds_what_is_wrong_with_that(staff: Client, server: Server) -> None:
    large = {"pool": {"min_size": 200, "max_size": 300}}  # the server takes 100
    with PgBouncer(server, default_pool_size=5) as pooler:
        with database(entry(pooler.conninfo, OPTIONS=large)):
            found = findings(content(staff))
        with database(entry(pooler.conninfo, ABS_ORM_APP={"mode": "pgbouncer"})):
            as_meant = findings(content(staff))
    assert {"W031", "W035", "I031"} <= found
    assert "E021" not in found
    assert "W036" not in as_meant


@needs_pgbouncer
def test_a_pooler_without_a_free_connection_does_not_hold_up_the_page(
    staff: Client, server: Server
) -> None:
    one = PgBouncer(server, default_pool_size=1, pool_mode="session")
    with one as pooler, database(entry(pooler.conninfo, OPTIONS=SMALL)) as alias:
        html = content(staff)
    assert 'data-state="failed"' not in card(html, alias)
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


def test_it_lists_the_processes_of_the_project_or_says_why_it_cannot(
    staff: Client, server: Server
) -> None:
    unknown = "The processes of this project cannot be told apart"
    with (
        psycopg.connect(server.conninfo, application_name="shop@web-2:12"),
        psycopg.connect(server.conninfo, application_name="shop@web-2:13"),
        psycopg.connect(server.conninfo, application_name="blog@web-2:14"),
    ):
        # Of one process, the table of the applications says as much.
        for project, expected in (("shop", (1, 0)), ("blog", (0, 0)), (None, (0, 1))):
            given = entry(server.conninfo, OPTIONS=SMALL, ABS_ORM_APP={"project": project})
            with database(given) as alias:
                shown = content(staff).partition(f'id="database-of-{alias}"')[2]
            shown = shown.partition("</section>")[0]
            assert (shown.count(">web-2:12</th>"), shown.count(unknown)) == expected


def test_two_aliases_of_one_database_show_it_once(staff: Client, server: Server) -> None:
    with (
        database(entry(server.conninfo, OPTIONS=SMALL), "one"),
        database(entry(server.conninfo, OPTIONS=SMALL), "two"),
    ):
        html = content(staff)
    assert "aliases one, two" in html
    assert html.count("data-database=") == 2  # with that of the default alias


def test_an_alias_without_a_pool_of_ours_has_its_place_too(staff: Client, server: Server) -> None:
    with database(entry(server.conninfo, STOCK, OPTIONS=SMALL), "stock"), database(SQLITE, "lite"):
        html = content(staff)
        connections["stock"].pool.open(wait=True)  # type: ignore[attr-defined]
        with connections["stock"].cursor():
            in_use = card(content(staff), "stock")
    assert "This is not PostgreSQL" in card(html, "lite")
    assert 'data-state="unused"' in card(html, "stock")
    assert 'data-state="stock"' in in_use
    assert "2 connections, 1 of them idle; 0 requests waiting." in in_use


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
    assert "cannot be reached" in html
    assert "do-not-tell" not in html
