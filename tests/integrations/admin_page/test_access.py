"""Who may see the live page, also while the database is in trouble."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from secrets import token_hex
from time import monotonic
from typing import Any

import psutil
import psycopg
import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connections
from django.http import HttpRequest
from django.test import Client, override_settings
from django.urls import include, path

from abs_orm_app.facts.snapshot import snapshot
from abs_orm_app.integrations import unpooled
from abs_orm_app.integrations.admin_page import access
from abs_orm_app.integrations.admin_page.admin import PoolsAdmin
from abs_orm_app.integrations.admin_page.models import Pools
from abs_orm_app.pool import HardenedPool
from abs_project.demo import PAGE
from tests.support.pages import IN_TIME, SMALL, card, content, get, logged_in, permitted, state
from tests.support.pools import Call, sockets
from tests.support.projects import database, entry
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.usefixtures("users", "each_view_asks")


@pytest.mark.parametrize("path", [PAGE, f"{PAGE}guide/checks/"])
def test_nobody_sees_anything_without_logging_in(path: str) -> None:
    response = get(Client(), path)
    assert response.status_code == 302
    assert response.headers["Location"] == f"/admin/login/?next={path}"
    assert response.content == b""


@pytest.mark.parametrize("path", [PAGE, f"{PAGE}guide/checks/"])
@pytest.mark.parametrize("flags", [{}, {"is_staff": True, "is_active": False}])
def test_only_active_staff_sees_it(path: str, flags: dict[str, bool]) -> None:
    client = permitted(logged_in(**flags))
    assert get(client, path).headers["Location"].startswith("/admin/login/")


@pytest.mark.parametrize("path", [PAGE, f"{PAGE}guide/checks/"])
def test_staff_needs_the_permission_of_the_page(path: str) -> None:
    client = logged_in(is_staff=True)
    assert get(client, path).status_code == 403
    assert get(permitted(client), path).status_code == 200


def test_a_superuser_needs_nothing_else() -> None:
    assert "Connection pools" in content(logged_in(is_staff=True, is_superuser=True))


def test_it_only_answers_to_looking(staff: Client) -> None:
    assert staff.post(PAGE).status_code == 405


def test_it_is_not_cached(staff: Client) -> None:
    assert "no-store" in get(staff).headers["Cache-Control"]


# When the database is in trouble


def test_a_server_of_another_alias_that_hangs_does_not_hold_up_the_page(
    staff: Client, server: Server, pool: HardenedPool
) -> None:
    with server.suspended():
        html = content(staff)
    assert 'data-state="failed"' in card(html, pool.name)
    assert "2 idle" in card(html, pool.name)


@contextmanager
def locked(table: str) -> Iterator[None]:
    """Hold a lock that everybody waits for who reads the table, and lose patience soon."""
    parameters: Any = connections["default"].get_connection_params()
    with psycopg.connect(**parameters) as blocker, pytest.MonkeyPatch.context() as patch:
        blocker.execute(f"lock table {table}")
        patch.setattr(unpooled, "STATEMENT_TIMEOUT", 500)
        yield


def sessions_waiting() -> int:
    with connections["default"].cursor() as cursor:
        cursor.execute("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
        return int(cursor.fetchone()[0])


def test_who_was_let_in_sees_this_process_while_the_database_does_not_answer(
    staff: Client, server: Server, pool: HardenedPool
) -> None:
    content(staff)
    with locked("django_session"):
        html = content(staff, status=503)
        # The server has given up as well: a page that is reloaded leaves nobody behind.
        wait_until(lambda: sessions_waiting() == 0, "the query to end", IN_TIME)
    assert "⚠ login: not looked up" in html, "the server answers"
    assert "session could not be looked up" in html
    assert "2 idle" in card(html, pool.name)
    assert "Welcome" not in html
    assert "session could not be looked up" not in content(staff)


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


def test_others_are_not_told_where_the_database_is(staff: Client) -> None:
    stranger = Client()
    stranger.cookies["sessionid"] = "made-up-session"
    entry = connections.settings["default"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(entry, "HOST", "127.0.0.1")
        patch.setitem(entry, "PORT", "1")
        patch.setitem(entry, "USER", "role_of_the_project")
        patch.setitem(entry, "ABS_ORM_APP", {"password_provider": "no.such.provider"})
        for client in (stranger, staff):  # staff has not been here before
            html = content(client, status=503)
            assert "The database cannot be asked." in html
            assert "PROVIDER" not in html
        patch.delitem(entry, "ABS_ORM_APP")
        for client in (stranger, staff):
            html = content(client, status=503)
            for told in ("127.0.0.1", "role_of_the_project", "refused", "DATABASE"):
                assert told not in html


def test_a_pass_is_good_with_its_session_alone(staff: Client) -> None:
    content(staff)
    thief = Client()
    thief.cookies["abs_orm_app_staff"] = staff.cookies["abs_orm_app_staff"].value
    thief.cookies["sessionid"] = "another-session"
    with locked("django_session"):
        assert "session could not be looked up" in content(thief, status=503)
    staff.logout()
    staff.cookies["abs_orm_app_staff"] = thief.cookies["abs_orm_app_staff"].value
    assert get(staff).status_code == 302


def test_a_pass_has_an_end(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    content(staff)
    monkeypatch.setattr("abs_orm_app.integrations.admin_page.access.GOOD_FOR", -1)
    with locked("django_session"):
        assert "session could not be looked up" in content(staff, status=503)


def test_a_pass_is_not_for_scripts_nor_for_other_sites(staff: Client) -> None:
    content(staff)
    cookie = staff.cookies["abs_orm_app_staff"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Strict"
    assert cookie["path"] == PAGE
    assert not cookie["secure"]


def test_a_pass_is_for_https_alone_where_the_session_is(staff: Client) -> None:
    """Behind a proxy that ends TLS, the request itself may not look like HTTPS."""
    with override_settings(SESSION_COOKIE_SECURE=True):
        content(staff)
    assert staff.cookies["abs_orm_app_staff"]["secure"]


# Admin sites


class Refused(admin.AdminSite):
    """A site that wants more than a password, and did not get it. It has the default's name."""

    def has_permission(self, request: HttpRequest) -> bool:
        return super().has_permission(request) and bool(request.headers.get("Second-Factor"))


strict, second = Refused(), admin.AdminSite(name="second")
for each in (strict, second):
    each.register(Pools, PoolsAdmin)
urlpatterns = [
    path("strict/pool/", include("abs_orm_app.integrations.page")),
    path("strict/", strict.urls),
    path("second/tools/pool/", include(("abs_orm_app.integrations.page", "other"))),
    path("second/", second.urls),
    path("ops/pool/", include(("abs_orm_app.integrations.page", "third"))),
]


@pytest.fixture
def sites() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__):
        yield


@pytest.mark.usefixtures("sites")
@pytest.mark.parametrize(
    "path", ["/strict/pool/", "/strict/pool/guide/checks/", "/strict/abs_orm_app/pools/"]
)
def test_the_site_that_the_page_is_below_is_asked(staff: Client, path: str) -> None:
    response = get(staff, path)
    assert response.status_code == 302
    assert response.headers["Location"] == f"/strict/login/?next={path}"
    assert staff.get(path, headers={"Second-Factor": "1"}).status_code == 200


@pytest.mark.usefixtures("sites")
def test_each_site_has_the_page_where_it_is_registered(staff: Client) -> None:
    for address in ("/second/abs_orm_app/pools/", "/second/tools/pool/"):
        html = content(staff, address)
        assert '<a href="/second/">Home</a>' in html
        assert 'action="/second/logout/"' in html


@pytest.mark.usefixtures("sites")
def test_below_no_site_nobody_sees_it(staff: Client) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"^/ops/pool/ is below no admin site"):
        staff.get("/ops/pool/")


def test_the_admin_lists_the_page_for_those_who_may_see_it(staff: Client) -> None:
    link = f'<a href="{PAGE}"'
    for address in ("/admin/", "/admin/abs_orm_app/"):
        assert link in content(staff, address)
    html = content(staff)  # in the sidebar, as the page that is open
    assert f'{link} aria-current="page">Connection pools</a>' in html
    User.objects.get().user_permissions.clear()
    assert link not in content(staff, "/admin/")


def test_the_entry_in_the_admin_has_no_table_and_breaks_nothing_that_walks_the_models(
    staff: Client,
) -> None:
    dumped = StringIO()
    call_command("dumpdata", "--all", stdout=dumped)
    assert "auth.user" in dumped.getvalue()
    assert list(Pools.objects.all()) == []
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)
    assert Pools._meta.db_table not in connections["default"].introspection.table_names()
    for action in ("add/", "history/"):
        assert staff.get(f"{PAGE}{action}").status_code in (302, 404)


# Connections


@contextmanager
def counted_connections() -> Iterator[list[int]]:
    """How many connections the page had open at most, and how many sessions there were in all."""
    counts = [0, 0]
    seen: set[int] = set()
    ended, counts_now = threading.Event(), threading.Event()
    parameters: Any = connections["default"].get_connection_params()
    parameters["application_name"] = "counting"

    def sessions(admin: psycopg.Connection[Any]) -> set[int]:
        rows = admin.execute(
            "select pid from pg_stat_activity where backend_type = 'client backend'"
            " and application_name <> 'counting'"
        )
        return {row[0] for row in rows}

    def count() -> None:
        with psycopg.connect(**parameters, autocommit=True) as admin:
            # The server counts a session for a moment longer than its client has a socket.
            open_before, sessions_before = sockets(), sessions(admin)
            counts_now.set()
            while not ended.wait(0.002):
                counts[0] = max(counts[0], len(sockets() - open_before))
                seen.update(sessions(admin) - sessions_before)

    counting = Call(count)
    try:
        assert counts_now.wait(IN_TIME)
        yield counts
    finally:
        ended.set()
        counting.result(IN_TIME)
        counts[1] = len(seen)


def strangers(number: int, each: int) -> list[int]:
    """The status codes of visits at the same time with made-up sessions."""

    def visit() -> list[int]:
        codes = []
        for _ in range(each):
            client = Client()
            client.cookies["sessionid"] = token_hex(16)
            codes.append(get(client).status_code)
        return codes

    calls = [Call(visit) for _ in range(number)]
    return [code for call in calls for code in call.result(2 * IN_TIME)]


def test_made_up_sessions_open_one_connection_at_a_time_and_few_in_all(
    users: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "STRANGERS", unpooled.Rate(5))
    connections["default"].close()
    began = monotonic()
    with counted_connections() as counts:
        codes = strangers(number=20, each=10)
    seconds = monotonic() - began
    most, every = counts
    assert most <= 1
    # The rate allows five a second, and five at once. (A session may be missed, none made up.)
    assert every <= 5 + 5 * seconds + 1
    assert set(codes) <= {302, 503}
    assert 503 in codes


def test_staff_with_a_pass_is_looked_up_while_strangers_come(
    staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    content(staff)
    monkeypatch.setattr(access, "STRANGERS", unpooled.Rate(0.001))
    strange = Client()
    strange.cookies["sessionid"] = "made-up-session"
    html = content(strange, status=503)
    assert "Too many visitors" in html
    assert get(strange).headers["Retry-After"]
    assert "Welcome" in content(staff)


def test_a_visitor_without_a_session_costs_no_connection(users: None) -> None:
    connections["default"].close()
    with counted_connections() as counts:
        for _ in range(5):
            assert get(Client()).status_code == 302
    assert counts == [0, 0]


def test_many_who_look_at_once_ask_each_server_once(
    staff: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpooled, "FRESH", 30.0)
    with database(entry(server.conninfo, OPTIONS=SMALL)), server.admin() as admin:
        calls = [Call(content, staff) for _ in range(8)]
        for call in calls:
            assert 'data-database="postgres"' in call.result(2 * IN_TIME)
        began: Any = admin.execute("select sessions from pg_stat_database where datname='postgres'")
        assert began.fetchone()[0] <= 3  # this one, the one that asked, and one to start with


def test_a_hung_connection_is_the_only_one_until_it_is_given_up(
    staff: Client, server: Server, pool: HardenedPool
) -> None:
    with server.suspended():
        for _ in range(2):
            assert state(content(staff), pool.name) == "failed"
        opened = len(psutil.Process().net_connections("unix"))
        assert state(content(staff), pool.name) == "failed"
        assert len(psutil.Process().net_connections("unix")) <= opened + 1
    assert snapshot(pool).checkouts == 0
