"""The health view for load balancers and the check for django-health-check."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import HttpResponse
from django.test import AsyncRequestFactory, Client, RequestFactory, override_settings
from django.urls import path
from health_check.views import HealthCheckView  # type: ignore[import-untyped]

from abs_orm_app.integrations import health
from abs_orm_app.integrations.unpooled import run_unpooled
from abs_orm_app.pool.pool import HardenedPool
from tests.support.databases import pool_of
from tests.support.pools import Call, give_back
from tests.support.processes import GUNICORN, states, web_server
from tests.support.projects import SQLITE, STOCK, database, entry
from tests.support.proxy import Proxy
from tests.support.servers import Server, wait_until

ONE = {"pool": {"min_size": 1, "max_size": 1, "timeout": 20.0}}
SECONDS = 0.5
LATE = 5.0  # seconds that a busy machine may add

urlpatterns = [path("healthz/", health.view, {"aliases": "other", "seconds": 10.0})]


pytestmark = pytest.mark.usefixtures("unblocked")


@pytest.fixture
def alias(server: Server) -> Iterator[str]:
    with database(entry(server.conninfo, OPTIONS=ONE)) as alias:
        yield alias


@pytest.fixture
def nothing_is_late_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was taken a moment ago says nothing of the server."""
    monkeypatch.setattr(health, "LATELY", 0.0)


@contextmanager
def exhausted(pool: HardenedPool) -> Iterator[None]:
    conn = pool.getconn()
    try:
        yield
    finally:
        pool.putconn(conn)


@contextmanager
def awaited(pool: HardenedPool) -> Iterator[None]:
    """A full pool that a request waits for."""
    with exhausted(pool):
        request = Call(pool.getconn)
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 1, "the request to wait")
        yield
    pool.putconn(request.result(LATE))


@contextmanager
def unreachable() -> Iterator[int]:
    """A port where nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def ask(*aliases: str, seconds: float = SECONDS) -> tuple[int, dict[str, Any]]:
    began = time.monotonic()
    response = health.view(RequestFactory().get("/"), aliases=aliases, seconds=seconds)
    assert time.monotonic() - began < seconds + LATE
    return response.status_code, json.loads(response.content)


def state(alias: str, seconds: float = SECONDS) -> str:
    status, answer = ask(alias, seconds=seconds)
    assert answer["status"] == answer["databases"][alias]
    assert status == (503 if answer["status"] == "failed" else 200)
    return str(answer["status"])


# With a pool


def test_a_check_takes_no_connection_away(alias: str) -> None:
    pool = pool_of(alias)
    for _ in range(3):
        assert state(alias, seconds=10.0) == "ok"
    assert pool.get_stats()["pool_available"] == 1


@pytest.mark.usefixtures("nothing_is_late_enough")
def test_a_full_pool_that_nobody_waits_for_is_ok(server: Server, alias: str) -> None:
    pool = pool_of(alias)
    with exhausted(pool):
        assert state(alias, seconds=10.0) == "ok"
        assert pool.get_stats().get("requests_timeouts", 0) == 0
    wait_until(lambda: server.sessions() == 1, "the check's own session to end")


def test_a_full_pool_whose_connections_come_back_needs_no_session_beside_it(
    server: Server, alias: str
) -> None:
    with exhausted(pool_of(alias)), server.admin() as admin:
        query = "select sessions from pg_stat_database where datname = 'postgres'"
        before = admin.execute(query).fetchone()
        assert state(alias, seconds=10.0) == "ok"
        admin.execute("select pg_stat_clear_snapshot()")
        assert admin.execute(query).fetchone() == before


@pytest.mark.usefixtures("nothing_is_late_enough")
def test_many_who_check_a_full_pool_open_one_connection(server: Server, alias: str) -> None:
    with exhausted(pool_of(alias)), server.admin() as admin:
        checks = [Call(state, alias, 10.0) for _ in range(20)]
        assert [check.result(2 * LATE) for check in checks] == ["ok"] * 20
        began = admin.execute("select sessions from pg_stat_database where datname = 'postgres'")
        # The pool's, this one, one beside the pool, and one to start with; more after a second.
        assert began.fetchone()[0] <= 4 + LATE  # type: ignore[index]


@pytest.mark.usefixtures("nothing_is_late_enough")
def test_visitors_of_the_page_who_wait_fail_no_check_of_a_full_pool(alias: str) -> None:
    """They may wait for a table that a migration has locked; anybody can make up a session."""
    began, done = threading.Event(), threading.Event()

    def visit() -> bool:
        with connections[alias].cursor():
            began.set()
            return done.wait(4 * LATE)

    with exhausted(pool_of(alias)):
        page = Call(partial(run_unpooled, visit, seconds=4 * LATE))
        assert began.wait(LATE)
        assert state(alias, seconds=10.0) == "ok"
        done.set()
        assert page.result(LATE)


@pytest.mark.usefixtures("nothing_is_late_enough")
@pytest.mark.parametrize("problem", ["stopped", "hung"])
def test_a_full_pool_of_a_broken_server_is_failed(server: Server, alias: str, problem: str) -> None:
    with exhausted(pool_of(alias)):
        server.suspend() if problem == "hung" else server.stop()
        try:
            assert state(alias) == "failed"
        finally:
            server.resume() if problem == "hung" else server.start()
    assert state(alias, seconds=20.0) == "ok"


@pytest.mark.usefixtures("nothing_is_late_enough")
@pytest.mark.server({"max_connections": "5", "superuser_reserved_connections": "0"})
def test_a_full_pool_that_has_all_that_the_server_gives_is_not_failed(server: Server) -> None:
    options = {"pool": {"min_size": 5, "max_size": 5, "timeout": 20.0}}
    with database(entry(server.conninfo, OPTIONS=options)) as alias:
        pool = pool_of(alias)
        conns = [pool.getconn() for _ in range(5)]
        assert state(alias, seconds=10.0) == "ok"
        give_back(pool, conns)


def test_a_check_that_has_no_time_for_an_answer_closes_no_good_connection(server: Server) -> None:
    with Proxy(server.port, delay=0.05) as proxy:
        given = entry(server.tcp_conninfo, OPTIONS=ONE, PORT=proxy.port)
        with database(given) as alias:
            pool = pool_of(alias)
            assert state(alias, seconds=0.02) == "failed"
            assert state(alias, seconds=10.0) == "ok"
            assert pool.get_stats()["connections_num"] == 1


def test_a_full_pool_that_requests_wait_for_is_degraded(alias: str) -> None:
    pool = pool_of(alias)
    with awaited(pool):
        assert state(alias, 10.0) == "degraded"
        assert pool.get_stats()["requests_waiting"] == 1
    assert state(alias, seconds=10.0) == "ok"


def test_requests_that_wait_for_the_first_connections_are_ok(server: Server) -> None:
    options = {"pool": {"min_size": 1, "max_size": 50, "timeout": 20.0}}
    with database(entry(server.conninfo, OPTIONS=options)) as alias:
        pool = connections[alias].pool  # type: ignore[attr-defined]
        server.suspend()
        pool.open()
        request = Call(pool.getconn)
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 1, "the request to wait")
        checked = Call(state, alias, 10.0)
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 2, "the check to wait")
        server.resume()
        pool.putconn(request.result(LATE))
        assert checked.result(LATE) == "ok"


class Mirror:
    """A router by which the project writes to the default alias only."""

    def db_for_write(self, *_: Any, **__: Any) -> str:
        return "default"


@pytest.mark.parametrize(("routers", "code"), [([], 503), ([Mirror()], 200)])
def test_a_standby_is_failed_only_for_an_alias_that_writes(
    server: Server, alias: str, routers: list[Any], code: int
) -> None:
    with override_settings(DATABASE_ROUTERS=routers, ROOT_URLCONF=__name__):
        assert health.check([alias])[alias].state == "ok"
        server.stop()
        (server.data / "standby.signal").touch()
        server.start()
        answer = Client().get("/healthz/")
    assert answer.status_code == code
    assert answer.json()["reasons"] == ({alias: "read-only"} if code == 503 else {})


def test_a_server_that_hangs_is_failed_even_right_after_a_good_query(
    server: Server, alias: str
) -> None:
    pool = pool_of(alias)
    with pool.connection() as conn:
        conn.execute("select 1")
    with server.suspended():
        assert state(alias) == "failed"
    assert state(alias, seconds=10.0) == "ok"


def test_a_server_that_hangs_while_the_last_session_is_cleaned_is_failed(
    server: Server, alias: str
) -> None:
    """That connection is neither idle nor in use."""
    pool = pool_of(alias)
    conn = pool.getconn()
    with server.suspended():
        pool.putconn(conn)
        assert state(alias) == "failed"
    assert state(alias, seconds=10.0) == "ok"


# Without a pool


@pytest.mark.parametrize("options", [{}, ONE], ids=["no pool", "Django's own pool"])
def test_an_alias_without_a_pool_of_ours_is_checked_too(
    server: Server, options: dict[str, Any]
) -> None:
    with database(entry(server.conninfo, STOCK, OPTIONS=options)) as alias:
        assert state(alias, seconds=10.0) == "ok"
        server.stop()
        assert state(alias) == "failed"
        server.start()
        assert state(alias, seconds=20.0) == "ok"
        wait_until(lambda: server.sessions() == len(options), "the session to end")


def test_an_alias_that_is_not_postgresql_is_checked_too() -> None:
    with database(SQLITE) as alias:
        assert state(alias, seconds=10.0) == "ok"


def test_only_one_thread_waits_for_a_server_that_hangs(server: Server) -> None:
    # A name of its own, because threads of other tests may still be running.
    with database(entry(server.conninfo), "hanging") as alias:
        with server.suspended():
            for _ in range(3):
                assert state(alias) == "failed"
            names = [thread.name for thread in threading.enumerate()]
            assert names.count(f"{alias}-health") == 1
        assert state(alias, seconds=10.0) == "ok"


@pytest.mark.parametrize("aliases", ["replca", ["default", "replca"]])
def test_an_unknown_alias_is_refused_with_the_known_ones(
    alias: str, aliases: str | list[str]
) -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        health.check(aliases)
    assert str(raised.value) == (
        "DATABASES has no alias 'replca' to be checked: it has 'default', 'other'."
    )


# The answer


def test_all_aliases_are_checked_at_once_and_a_failed_one_hides_no_other(
    server: Server, alias: str
) -> None:
    with (
        unreachable() as port,
        database(entry(server.tcp_conninfo, OPTIONS=ONE, PORT=port), "one") as one,
        database(entry(server.tcp_conninfo, OPTIONS=ONE, PORT=port), "two") as two,
    ):
        pool_of(alias)
        # Checked one after the other, the first would leave no time for the last.
        status, answer = ask(one, two, alias, seconds=3.0)
    assert status == 503
    assert answer == {
        "status": "failed",
        "databases": {one: "failed", two: "failed", alias: "ok"},
        "reasons": {one: "hung", two: "hung"},
    }


def test_without_aliases_all_are_checked(server: Server, alias: str) -> None:
    """They are ok in a process that has not used them yet."""
    response = health.view(RequestFactory().get("/"), seconds=10.0)
    assert json.loads(response.content)["databases"] == {"default": "ok", alias: "ok"}


@override_settings(
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ],
)
def test_the_view_needs_no_login_and_is_not_cached(alias: str) -> None:
    response = Client().get("/healthz/")
    assert response.status_code == 200
    assert "no-store" in response.headers["Cache-Control"]
    assert Client().post("/healthz/").status_code == 405


def test_the_answer_shows_neither_server_nor_user_nor_error(server: Server) -> None:
    secretive = entry(server.conninfo, OPTIONS=ONE, PASSWORD="do-not-tell")
    with database(secretive) as alias:
        server.stop()
        _, answer = ask(alias)
    reasons = {alias: "unreachable"}
    assert answer == {"status": "failed", "databases": {alias: "failed"}, "reasons": reasons}


# A real process, with ATOMIC_REQUESTS

SITE = {"DJANGO_SETTINGS_MODULE": "tests.support.watched.settings", "ATOMIC": "true"}


def test_a_load_balancer_sees_a_real_process_fail_and_recover(server: Server) -> None:
    with web_server(GUNICORN, server, "--worker-class=gthread", "--threads=2", **SITE) as web:
        assert web.get(["/healthz/"])[0].startswith("HTTP/1.1 200 OK\n")
        server.stop()
        began = time.monotonic()
        assert web.get(["/healthz/"])[0].startswith("HTTP/1.1 503")
        assert time.monotonic() - began < health.SECONDS + LATE
        server.start()
        wait_until(lambda: web.get(["/healthz/"])[0].startswith("HTTP/1.1 200"), "recovery")


def test_a_burst_does_not_take_a_real_process_out_of_its_load_balancer(server: Server) -> None:
    """24 requests of 0.2 s on one connection: the last waits for 4.8 s, and the view for 2 s."""
    one = {"DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": "0"}
    with web_server(
        GUNICORN, server, "--worker-class=gthread", "--threads=32", **SITE, **one
    ) as web:
        web.get(["/slow/?ms=1"])
        burst = Call(web.get, ["/slow/?ms=200"] * 24)
        wait_until(lambda: "active" in states(server), "the burst to begin")
        checks = []
        while burst.is_alive():
            checks.append(web.get(["/healthz/"])[0])
        answers = burst.result(30)
    assert [answer.partition("\n")[0] for answer in answers] == ["HTTP/1.1 200 OK"] * 24
    assert [check for check in checks if not check.startswith("HTTP/1.1 200 OK")] == []
    assert sum('"degraded"' in check for check in checks) >= 3


def test_a_load_balancer_sees_a_real_process_that_serves_nobody(server: Server) -> None:
    one = {"DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": "0", "DB_POOL_TIMEOUT": "1"}
    with web_server(
        GUNICORN, server, "--worker-class=gthread", "--threads=4", **SITE, **one
    ) as web:
        request = Call(web.get, ["/slow/?ms=60000"])
        wait_until(lambda: "active" in states(server), "the request to use the connection")
        wait_until(lambda: web.get(["/healthz/"])[0].startswith("HTTP/1.1 503"), "a failed check")
        assert request.is_alive()
        assert server.cancel() == 1
        request.result(30)
        assert web.get(["/healthz/"])[0].startswith("HTTP/1.1 200")


# django-health-check


def health_check(alias: str, seconds: float = SECONDS) -> tuple[int, str]:
    """The status code and the text of its answer for one alias."""
    options = {"alias": alias, "timeout": timedelta(seconds=seconds)}
    name = "abs_orm_app.integrations.health_check.Pool"
    view = HealthCheckView.as_view(checks=[(name, options)])
    request = AsyncRequestFactory().get("/", query_params={"format": "text"})

    async def answer() -> HttpResponse:
        response: HttpResponse = await view(request)
        return response

    response = asyncio.run(answer())
    return response.status_code, response.content.decode().partition(": ")[2].strip()


def test_django_health_check_reports_a_pool_that_serves_as_ok(alias: str) -> None:
    assert health_check(alias, seconds=10.0) == (200, "OK")


@pytest.mark.usefixtures("nothing_is_late_enough")
def test_django_health_check_reports_a_server_that_is_away_as_unavailable(
    server: Server, alias: str
) -> None:
    with exhausted(pool_of(alias)):
        server.stop()
        assert health_check(alias) == (500, "Unavailable: Not served within 0.5 seconds")


def test_django_health_check_warns_while_requests_wait(alias: str) -> None:
    with awaited(pool_of(alias)):
        assert health_check(alias, 10.0) == (500, "Warning: 1 waiting for a connection")
