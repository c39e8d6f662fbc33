"""Makes each of ten faults on a real server, and reads all that the product shows of it."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from time import sleep
from typing import Any

import django
import psycopg
from django.apps import apps

if not apps.ready:  # not in a test
    os.environ |= {"DJANGO_SETTINGS_MODULE": "abs_project.settings", "DB_NAME": "unused"}
    django.setup()

from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.urls import include, path
from prometheus_client.registry import CollectorRegistry

from abs_orm_app.integrations import health
from abs_orm_app.integrations.prometheus import PoolCollector
from abs_orm_app.pool.pool import HardenedPool
from tests.support.databases import pool_of
from tests.support.pages import IN_TIME, content, logged_in, now, permitted
from tests.support.pools import Call
from tests.support.projects import ROOT, Ran, database, entry
from tests.support.servers import ONE_CONNECTION, PASSWORD_OVER_TCP, Server, wait_until

ALIAS = "other"
SIZE = 2
TIMEOUT = 3.0  # seconds of the pool: longer than what it takes to find out
PLACES = ("exception", "log", "check_pool", "page", "health", "metrics")

# How each place says each cause. A place of text says it in these words, the others by its name.
WORDS = {
    "unreachable": "the server cannot be reached",
    "refused": "the server refuses the connection",
    "full": "the server accepts no more connections",
    "hung": "the server does not answer",
    "slow": "slow statements",
    "locked": "wait for a lock",
    "exhausted": "the pool is exhausted",
    "read-only": "writes fail",
}


@dataclass
class Stage:
    """A pool of the alias, its server, and what a fault leaves to undo."""

    server: Server
    pool: HardenedPool
    undo: ExitStack
    done: threading.Event = field(default_factory=threading.Event)

    def hold(self, route: str, number: int = SIZE) -> None:
        """Requests that take so many connections, and keep them."""
        calls = [Call(_get, f"/{route}/") for _ in range(number)]
        wait_until(lambda: len(self.pool.in_use) == number, "the requests to hold connections")
        self.undo.callback(self._let_go, calls)

    def _let_go(self, calls: list[Call]) -> None:
        self.done.set()
        with self.server.admin() as admin:
            admin.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"
            )
        for call in calls:
            call.join(IN_TIME)


@dataclass(frozen=True)
class Fault:
    name: str
    cause: str
    make: Callable[[Stage], None]
    write: bool = False  # the request writes
    says: tuple[str, ...] = ()  # of the exception
    exception: str = ""  # where it is the server's own words, and not the pool's
    server: dict[str, Any] = field(default_factory=lambda: {"roles": ["app LOGIN"]})

    @property
    def name_for_machines(self) -> str:
        """The pool itself cannot see whether a statement is slow, or waits for a lock."""
        return "slow or locked" if self.cause in ("slow", "locked") else self.cause


current: Stage


def _get(url: str) -> Any:
    """A request, as a web server begins and ends it."""
    environ: dict[str, object] = {}  # it lives as long as the request
    request_started.send(WSGIHandler, environ=environ)
    try:
        return Client(raise_request_exception=True).get(url)
    finally:
        request_finished.send(WSGIHandler)


# What the requests do


def slow(_: HttpRequest) -> HttpResponse:
    return _run("SELECT pg_sleep(60)")


def lock(_: HttpRequest) -> HttpResponse:
    return _run("LOCK TABLE lot")


def _run(sql: str) -> HttpResponse:
    with suppress(OperationalError), transaction.atomic(ALIAS):
        connections[ALIAS].cursor().execute(sql)
    connections[ALIAS].close()
    return HttpResponse("")


def txn(_: HttpRequest) -> HttpResponse:
    with transaction.atomic(ALIAS):
        connections[ALIAS].cursor().execute("SELECT 1")
        current.done.wait(4 * IN_TIME)
    connections[ALIAS].close()
    return HttpResponse("")


def call(_: HttpRequest) -> HttpResponse:
    connections[ALIAS].cursor().execute("SELECT 1")
    current.done.wait(4 * IN_TIME)
    connections[ALIAS].close()
    return HttpResponse("")


def read(_: HttpRequest) -> HttpResponse:
    return _execute("SELECT 1")


def write(_: HttpRequest) -> HttpResponse:
    return _execute("INSERT INTO lot VALUES (1)")


def _execute(sql: str) -> HttpResponse:
    try:
        connections[ALIAS].cursor().execute(sql)
    finally:
        connections[ALIAS].close()
    return HttpResponse("")


urlpatterns = [
    *(path(f"{view.__name__}/", view) for view in (slow, lock, txn, call, read, write)),
    path("", include("abs_project.urls")),
]


class OneModel:
    """A router by which the project writes to the alias."""

    def db_for_write(self, model: Any, **_: Any) -> str | None:
        return ALIAS if model._meta.model_name == "logentry" else None


# The faults


def down(stage: Stage) -> None:
    stage.server.stop()


def wrong_password(stage: Stage) -> None:
    with stage.server.admin() as admin:
        admin.execute("ALTER ROLE app PASSWORD 'another'")
    stage.pool.drain()


def full(stage: Stage) -> None:
    stage.server.terminate()
    report = f"{stage.server.conninfo} user=report application_name=nightly-report"
    for _ in range(2):
        stage.undo.enter_context(psycopg.connect(report))
    stage.pool.drain()


def hung(stage: Stage) -> None:
    stage.server.suspend()
    stage.hold("read")
    stage.undo.callback(stage.server.resume)


def cut(stage: Stage) -> None:
    """Nothing accepts a connection: the queue of the listening socket is full."""
    stage.server.stop()
    listening = stage.undo.enter_context(socket.socket())
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", stage.server.port))
    listening.listen(0)
    for _ in range(4):
        client = stage.undo.enter_context(socket.socket())
        client.setblocking(False)
        client.connect_ex(listening.getsockname())


def slow_queries(stage: Stage) -> None:
    stage.hold("slow")


def lock_queue(stage: Stage) -> None:
    blocker = stage.undo.enter_context(
        psycopg.connect(stage.server.conninfo, application_name="migration")
    )
    blocker.execute("LOCK TABLE lot")
    stage.hold("lock")


def idle_in_transaction(stage: Stage) -> None:
    stage.hold("txn")


def slow_call(stage: Stage) -> None:
    stage.hold("call")


def standby(stage: Stage) -> None:
    stage.server.stop()
    (stage.server.data / "standby.signal").touch()
    stage.server.start()


FAULTS = (
    Fault("server down", "unreachable", down),
    Fault(
        "wrong password", "refused", wrong_password,
        exception="password authentication failed",
        server={"hba": PASSWORD_OVER_TCP, "roles": ["app LOGIN PASSWORD 'right'"]},
    ),
    Fault(
        "server full", "full", full,
        server={"settings": ONE_CONNECTION | {"max_connections": "7"},
                "roles": ["app LOGIN", "report LOGIN"]},
    ),
    Fault("server hung", "hung", hung),
    Fault("network cut", "unreachable", cut),
    Fault("slow queries", "slow", slow_queries, says=("Held by GET /slow/ (2)",)),
    Fault("lock queue", "locked", lock_queue, says=("Held by GET /lock/ (2)",)),
    Fault("idle in transaction", "exhausted", idle_in_transaction, says=("GET /txn/ (2)",)),
    Fault(
        "slow call in a request", "exhausted", slow_call,
        says=("GET /call/ (2)", "DB_POOL_RELEASE=transaction"),
    ),
    Fault(
        "failover to a standby", "read-only", standby, write=True,
        exception="cannot execute INSERT in a read-only transaction",
    ),
)  # fmt: skip


# The table of the docs

PAGE = ROOT / "docs" / "troubleshooting.md"
PLACE = re.compile(r"(?<=night --write -->\n).*?(?=<!-- end -->)", re.DOTALL)
ENTRIES = {
    "unreachable": "server-down",
    "refused": "wrong-credentials",
    "full": "too-many-clients",
    "hung": "hung-server",
    "slow": "slow-statements",
    "locked": "lock-queue",
    "exhausted": "pool-exhausted",
    "read-only": "writes-go-to-a-standby",
}


def table() -> str:
    """A row for each fault, of what `test_at_night` finds in each place."""
    rows = [
        f"| [{fault.name}](#{ENTRIES[fault.cause]}) | {WORDS[fault.cause]} |"
        f" `{fault.name_for_machines}` |"
        for fault in FAULTS
    ]
    return "\n".join(["| fault | in words | name |", "|---|---|---|", *rows, ""])


@dataclass
class Told:
    """What each place has said."""

    fault: Fault
    texts: dict[str, str]

    def cause_in(self, place: str) -> str:
        """The cause of the fault, if the place tells it; else what it says."""
        fault, text = self.fault, " ".join(self.texts[place].split())
        words = WORDS[fault.cause]
        if place in ("health", "metrics"):
            words = fault.name_for_machines
        elif place == "exception" and fault.exception:
            words = fault.exception
        return fault.cause if words.casefold() in text.casefold() else text

    def green(self) -> list[str]:
        """The places that say that all is well."""
        texts = self.texts
        found = [place for place in ("health", "metrics") if texts[place] in ("", "ok")]
        if not texts["log"]:
            found.append("log")
        if re.search(r"^OK: other can be used\.$", texts["check_pool"], re.MULTILINE):
            found.append("check_pool")
        return found + ["page"] * texts["page"].startswith("OK")


def look(fault: Fault, log: Callable[[], str]) -> Told:
    """Make the fault, and read all places while it lasts."""
    global current
    given = dict(fault.server)
    server = Server(given.pop("settings", None), **given)
    with ExitStack() as undo:
        undo.enter_context(server)
        with server.admin() as admin:
            admin.execute("CREATE TABLE lot (n int); GRANT ALL ON lot TO PUBLIC")
        options = {
            "connect_timeout": 2,
            "pool": {"min_size": SIZE, "max_size": SIZE, "timeout": TIMEOUT},
        }
        mine = entry(f"{server.tcp_conninfo} user=app", OPTIONS=options, PASSWORD="right")
        undo.enter_context(
            override_settings(
                ROOT_URLCONF=__name__, DATABASE_ROUTERS=[f"{__name__}.OneModel"], DEBUG=False
            )
        )
        undo.enter_context(database(mine, ALIAS))
        if fault.name == "server full":
            mine_pool = connections[ALIAS].pool  # type: ignore[attr-defined]
            mine_pool.resize(1, SIZE)
        pool = pool_of(ALIAS)
        visitor = undo.enter_context(visiting())
        current = Stage(server, pool, undo.enter_context(ExitStack()))
        fault.make(current)
        return Told(fault, dict(_texts(fault, pool, visitor, log)))


@contextmanager
def visiting() -> Iterator[Client]:
    try:
        client = permitted(logged_in(is_staff=True))
        client.raise_request_exception = False  # it would raise those of other requests, too
        yield client
    finally:
        User.objects.all().delete()
        Session.objects.all().delete()


def _texts(
    fault: Fault, pool: HardenedPool, visitor: Client, log: Callable[[], str]
) -> Iterator[tuple[str, str]]:
    failing = Call(_get, "/write/" if fault.write else "/read/")
    failing.join(4 * IN_TIME)
    yield "exception", str(failing.error)
    waiting = Call(_get, "/write/" if fault.write else "/read/")
    sleep(0.5)
    yield "metrics", _metric()
    yield "page", now(content(visitor))
    request = RequestFactory().get("/")
    answer = json.loads(health.view(request, aliases=[ALIAS], seconds=2.5).content)
    yield "health", answer.get("reasons", {}).get(ALIAS, answer["status"])
    yield "check_pool", Ran(database=[ALIAS], verbosity=1).out
    waiting.join(4 * IN_TIME)
    wait_until(lambda: WORDS[fault.cause] in log(), "the log", 10)
    yield "log", log()


def _metric() -> str:
    registry = CollectorRegistry()
    registry.register(PoolCollector())
    return " ".join(
        sample.labels["reason"]
        for metric in registry.collect()
        for sample in metric.samples
        if metric.name == "django_db_pool_trouble" and sample.labels["alias"] == ALIAS
    )


if __name__ == "__main__":
    PAGE.write_text(PLACE.sub(lambda _: table(), PAGE.read_text()))
