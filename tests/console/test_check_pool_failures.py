"""`manage.py check_pool` where something fails: one sentence, and never a secret."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from time import monotonic, sleep
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from django.db import connections
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout

from abs_orm_app.facts import connection_test, wording
from tests.support.pools import Call
from tests.support.projects import OURS, POOL, STOCK, Ran, database, entry, line, manage
from tests.support.servers import PASSWORD_OVER_TCP, Server, wait_until

pytestmark = [
    pytest.mark.usefixtures("unblocked"),
    pytest.mark.server(
        {"max_connections": "50"}, hba=PASSWORD_OVER_TCP, roles=["app LOGIN PASSWORD 'right'"]
    ),
]

NASTY = [
    "s3cret",
    "p@ss:w/rd?#[]",
    "100%",
    "a b+c",
    'it\'s \\ "quoted"',
    "ünï€",
    "x=1&y=2",
    "$(id)",
]


def test_a_server_that_is_down_is_one_sentence_and_the_settings_are_shown() -> None:
    address = "postgresql+asyncpg://u:s3cret@127.0.0.1:1/x"
    done = manage("check_pool", "-v2", DATABASE_URL=address)
    assert done.returncode == 1
    assert line(done.stdout, "DB_POOL_SIZE")
    said = " ".join(done.stdout.split())
    cause = 'connection to server at "127.0.0.1", port 1 failed: Connection refused.'
    assert f"default: the server cannot be reached: {cause} Fix: " in said
    assert said.count(cause) == 1
    assert "Start PostgreSQL there, or correct the host and port." in said
    assert "s3cret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_failure_is_in_the_json_too() -> None:
    with database(entry("host=127.0.0.1 port=1 user=x dbname=x", OPTIONS=POOL)) as alias:
        ran = Ran(database=[alias], format="json")
    [reported] = ran.json["databases"]
    assert (ran.code, ran.json["exit_code"]) == (1, 1)
    assert reported["server"] is None
    assert "Connection refused" in reported["test"]["failure"]["cause"]


@pytest.mark.parametrize(("timeout", "most"), [(2, 17), (30, 20)])
def test_a_server_that_hangs_is_a_failure_and_told_before_a_long_connect_timeout(
    server: Server, timeout: int, most: float
) -> None:
    options = {**POOL, "connect_timeout": timeout}
    with database(entry(server.conninfo, OPTIONS=options)) as alias, server.suspended():
        began = monotonic()
        ran = Ran(database=[alias])
        assert monotonic() - began < most
    assert ran.code == 1
    assert "other: the server does not answer: " in ran.out


def test_a_server_that_answers_may_take_the_connect_timeout(
    shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_test, "EARLY", 2)
    options = {"connect_timeout": 30, "options": "-c post_auth_delay=3"}
    with database(entry(shared.conninfo, OPTIONS=options)) as alias:
        ran = Ran(database=[alias])
    assert ran.code == 0, ran.out


def test_a_server_that_answers_but_lets_in_too_late_is_not_called_unreachable(
    server: Server,
) -> None:
    options = {**POOL, "connect_timeout": 2, "options": "-c post_auth_delay=4"}
    with database(entry(server.tcp_conninfo, OPTIONS=options)) as alias:
        ran = Ran(database=[alias], verbosity=1)
        pool: Any = connections[alias].pool  # type: ignore[attr-defined]
        pool.open()
        with pytest.raises(PoolTimeout) as late:
            pool.getconn(timeout=4)
    said, why = " ".join(ran.out.split()), "no connection could be opened in time"
    assert f"other: {why}: connection timeout expired: 127.0.0.1:{server.port} answers now." in said
    assert f"{why}: connection timeout expired: 127.0.0.1:" in str(late.value)


@pytest.mark.server({"max_connections": "5"})
def test_no_free_connection_on_the_server_is_a_failure_with_its_cause(server: Server) -> None:
    held = [psycopg.connect(server.conninfo) for _ in range(5)]
    with database(entry(server.conninfo, OPTIONS=POOL)) as alias:
        ran = Ran(database=[alias])
    for connection in held:
        connection.close()
    assert ran.code == 1
    assert "too many clients" in " ".join(ran.out.split())


@pytest.mark.parametrize("engine", [OURS, STOCK])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"OPTIONS": {"pool": {"min_sise": 4}}}, "psycopg_pool has no parameter 'min_sise'"),
        ({"OPTIONS": {"pool": True}, "CONN_MAX_AGE": 60}, "CONN_MAX_AGE=60 and OPTIONS['pool']"),
        ({"OPTIONS": {"pool": {"min_size": 9, "max_size": 4}}}, "min_size is 9"),
    ],
)
def test_a_pool_that_cannot_be_made_is_said_once_and_all_facts_are_shown(
    shared: Server, engine: str, wrong: dict[str, Any], said: str
) -> None:
    with database(entry(shared.conninfo, engine, **wrong)) as alias:
        ran, full = Ran(database=[alias], verbosity=1), Ran(database=[alias])
    assert ran.code == full.code == 1
    assert " ".join(ran.out.split()).count(said) == 1
    assert "Correct the settings of this database" not in ran.out
    assert "manage.py check_pool --explain E00" in ran.out
    assert ran.last == "FAILED: 1 of 1 database cannot be used; 1 finding of level ERROR or above."
    assert " ms " in line(full.out, "connect")


def test_wrong_settings_do_not_hide_that_the_server_is_down() -> None:
    down = entry("host=127.0.0.1 port=1 user=x dbname=x", ABS_ORM_APP={"relase": "request"})
    with database({**down, "OPTIONS": {"pool": True}}) as alias:
        out = Ran(database=[alias], verbosity=1).out
    assert "Connection refused" in out
    assert "'relase' (did you mean 'release'?)" in out


@pytest.mark.parametrize(
    ("name", "value"), [("OPTIONS", None), ("OPTIONS", "pool"), ("ABS_ORM_APP", ["x"])]
)
def test_a_key_of_the_wrong_type_is_said_once(shared: Server, name: str, value: Any) -> None:
    given = {"OPTIONS": {"pool": True}, name: value}
    with database(entry(shared.conninfo, **given)) as alias:
        ran = Ran(database=[alias], verbosity=1)
    assert ran.code == 1
    assert ran.out.count(f"{name} is of type ") == 1
    assert "Correct the settings of this database" not in ran.out


def test_an_engine_that_cannot_be_loaded_is_a_failure() -> None:
    with database({"ENGINE": "no.such.engine", "NAME": "x"}, "gone"):
        text, document = Ran(database=["gone"]), Ran(database=["gone"], format="json")
    assert (text.code, document.code) == (1, 1)
    assert text.last == document.json["summary"] == "FAILED: 1 of 1 database cannot be used."
    said = " ".join(text.out.split())
    assert "The engine cannot be loaded: There is no 'no.such.engine'" in said
    assert "Not checked: the rules on gone, whose engine cannot be loaded." in said
    assert "✓" not in said
    assert "no.such.engine" in document.json["databases"][0]["configured"]["error"]


@pytest.mark.parametrize("password", NASTY)
@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_a_password_is_never_shown(shared: Server, engine: str, password: str) -> None:
    options = {**POOL, "sslpassword": password}
    wrong = entry(f"{shared.tcp_conninfo} user=app", engine, PASSWORD=password, OPTIONS=options)
    with database(wrong) as alias:
        text, document = Ran(database=[alias]), Ran(database=[alias], format="json")
    assert text.code == 1
    assert "password authentication failed" in " ".join(text.out.split())
    for out in (text.out, document.out):
        for spelling in (password, quote(password), quote(password, safe=""), repr(password)[1:-1]):
            assert spelling not in out


def test_a_password_from_the_environment_is_never_shown(shared: Server) -> None:
    password = "p@ss w/rd%"
    for environ in (
        {"DATABASE_URL": f"postgresql://app:{quote(password, safe='')}@127.0.0.1:{shared.port}/x"},
        {"DB_HOST": "127.0.0.1", "DB_PORT": str(shared.port), "DB_NAME": "x", "DB_USER": "app",
         "DB_PASSWORD": password},
    ):  # fmt: skip
        done = manage("check_pool", "--traceback", **environ)
        assert done.returncode == 1
        assert password not in done.stdout + done.stderr
        assert quote(password, safe="") not in done.stdout + done.stderr


def password_of_app(_: Mapping[str, Any]) -> str:
    return "right"


def test_the_password_of_a_provider_is_used_also_by_the_drill(shared: Server) -> None:
    extra = {"password_provider": f"{__name__}.password_of_app"}
    options = {"pool": {**POOL["pool"], "min_size": 2, "max_size": 3}}
    given = entry(f"{shared.tcp_conninfo} user=app", OPTIONS=options, ABS_ORM_APP=extra)
    with database(given) as alias:
        ran = Ran(database=[alias], drill=True)
    assert ran.code == 0, ran.out


# What happens now


@contextmanager
def queue_for_a_lock(server: Server) -> Iterator[int]:
    """A blocker, one that it blocks, and two that this one blocks; gives the blocker's pid."""
    with server.admin() as admin, ExitStack() as stack:
        admin.execute("CREATE TABLE lot (); CREATE TABLE other_lot ()")
        blocker, second, *others = (
            stack.enter_context(closing(psycopg.connect(server.conninfo, application_name=name)))
            for name in ("migration", "second", "web", "web")
        )
        blocker.execute("LOCK TABLE lot")
        second.execute("LOCK TABLE other_lot")
        calls = [Call(second.execute, "LOCK TABLE lot")]
        calls += [Call(other.execute, "LOCK TABLE other_lot") for other in others]
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        wait_until(lambda: admin.execute(waits).fetchone() == (3,), "the locks")
        try:
            yield blocker.info.backend_pid
        finally:
            server.terminate()
            for call in calls:
                call.join(20)


def test_a_lock_queue_is_told_with_the_root_and_the_line_that_ends_it(server: Server) -> None:
    with database(entry(server.conninfo, OPTIONS=POOL)) as alias, queue_for_a_lock(server) as root:
        ran = Ran(database=[alias], verbosity=1)
        json = Ran(database=[alias], format="json").json
    said = " ".join(ran.out.split())
    assert "! Now" in ran.out
    assert "3 sessions wait for a lock, the longest for " in said
    assert f"; server process {root} (migration), idle in transaction for " in said
    assert f"\n      SELECT pg_terminate_backend({root});\n" in ran.out
    assert ran.last.startswith("OK: other can be used")
    assert "but requests may be waiting: 3 sessions wait for a lock" in ran.last
    assert ran.code == 0
    [(session, waiting)] = json["databases"][0]["now"]["roots"]
    assert (session["pid"], waiting) == (root, 3)


def test_a_root_that_blocks_some_is_not_said_to_block_all(server: Server) -> None:
    with (
        database(entry(server.conninfo, OPTIONS=POOL)) as alias,
        server.admin() as admin,
        closing(psycopg.connect(server.conninfo)) as another,
        closing(psycopg.connect(server.conninfo)) as fourth,
    ):
        admin.execute("CREATE TABLE third_lot ()")
        another.execute("LOCK TABLE third_lot")
        with queue_for_a_lock(server):
            call = Call(fourth.execute, "LOCK TABLE third_lot")
            wait_until(lambda: "4 sessions wait" in Ran(database=[alias]).last, "the fourth")
            ran = Ran(database=[alias])
        call.join(20)
    assert ran.last.endswith(" s, blocks 3 of them.")


def test_a_root_whose_state_is_hidden_is_named(server: Server) -> None:
    with server.admin() as admin:
        admin.execute("CREATE TABLE lot (); GRANT ALL ON lot TO app")
    with (
        database(entry(server.conninfo, OPTIONS=POOL, USER="app")) as alias,
        closing(psycopg.connect(server.conninfo)) as blocker,
        closing(psycopg.connect(f"{server.conninfo} user=app")) as waiter,
    ):
        blocker.execute("LOCK TABLE lot")
        call = Call(waiter.execute, "LOCK TABLE lot")
        wait_until(lambda: "1 session waits" in Ran(database=[alias]).last, "the lock")
        ran = Ran(database=[alias])
        root = blocker.info.backend_pid
        server.terminate()
        call.join(20)
    assert ran.last.endswith(f"; server process {root} blocks it.")


def test_a_forgotten_transaction_and_a_long_query_are_told(
    shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wording, "LONG", 0.1)
    with (
        database(entry(shared.conninfo, OPTIONS=POOL)) as alias,
        psycopg.connect(shared.conninfo, application_name="importer") as importer,
    ):
        importer.execute("SELECT 1")
        pid = importer.info.backend_pid
        sleep(0.2)
        idle = " ".join(Ran(database=[alias], verbosity=1).out.split())
        query = Call(importer.execute, "SELECT pg_sleep(60)")
        wait_until(lambda: importer.pgconn.transaction_status == TransactionStatus.ACTIVE, "it")
        sleep(0.2)
        slow = " ".join(Ran(database=[alias], verbosity=1).out.split())
        importer.cancel()
        query.join(20)
    who = rf" \d s, server process {pid} \(importer\)\."
    assert re.search(rf"Idle in a transaction: the longest for{who}", idle)
    assert "but requests may be waiting: idle in a transaction" in idle
    assert re.search(rf"Slow statements: the longest has run for{who}", slow)
    assert "sessions importer 1" in slow


@pytest.mark.server({"max_connections": "5", "superuser_reserved_connections": "1"},
                    roles=["app LOGIN", "report LOGIN"])  # fmt: skip
def test_a_full_server_is_asked_over_an_idle_connection_of_the_pool(server: Server) -> None:
    one = {"pool": {"min_size": 1, "max_size": 2, "timeout": 5.0}}
    report = f"{server.conninfo} user=report application_name=nightly-report"
    with database(entry(f"{server.conninfo} user=app", OPTIONS=one)) as alias, ExitStack() as stack:
        pool = connections[alias].pool  # type: ignore[attr-defined]
        pool.open(wait=True)
        for _ in range(3):
            stack.enter_context(psycopg.connect(report))
        ran = Ran(database=[alias], verbosity=1)
        assert len(pool.idle) == 1
    said = " ".join(ran.out.split())
    assert "sessions nightly-report 3" in said
    assert "in use " in said
    assert "other: the server accepts no more connections: connection to server" in said
    assert ran.code == 1


def test_a_healthy_database_is_sixteen_lines_at_most(shared: Server) -> None:
    done = manage("check_pool", DATABASE_URL=shared.url)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 16
    assert done.stdout.splitlines()[-1] == "OK: default can be used."
