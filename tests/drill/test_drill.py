"""The drill with our engine and the stock one, on servers with and without room for it."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from io import StringIO
from itertools import islice
from time import monotonic, sleep
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections

from abs_orm_app.drill import stage, steps
from abs_orm_app.drill.admission import NoPool, Refused
from abs_orm_app.drill.runner import Outcome, drill
from abs_orm_app.environment import PoolSettings, database_from_env
from abs_orm_app.facts.databases import configured
from tests.support.pgbouncers import PgBouncer, needs_pgbouncer
from tests.support.processes import program
from tests.support.projects import OURS, SQLITE, STOCK, database, entry
from tests.support.servers import Server, wait_until
from tests.support.tasks import STREAM, held_by_tasks

pytestmark = [
    pytest.mark.usefixtures("unblocked"),
    pytest.mark.server(
        {"max_connections": "100"}, roles=["app LOGIN", "limited LOGIN CONNECTION LIMIT 3"]
    ),
]

NAMES = [
    "size", "overflow", "timeout", "explanation", "return", "pre-ping", "recycle", "deadline",
    "read-only", "leak", "release", "pin", "session", "clean",
]  # fmt: skip
COMMAND = [sys.executable, "manage.py", "check_pool", "--drill"]
ON_STOCK = "--settings=abs_project.stock_settings"


@pytest.fixture(autouse=True)
def _a_drill_leaves_no_session(shared: Server) -> Iterator[None]:
    yield
    wait_until(
        lambda: not any("drill" in name for name in names(shared)), "the drill's sessions to end"
    )


@pytest.fixture(autouse=True)
def tolerant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow for a busy machine: a drill in this process judges times less strictly."""
    monkeypatch.setattr(steps, "LATE", 3.0)
    monkeypatch.setattr(steps, "REPLACE_SECONDS", 10.0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time that a drill waits for something that never happens."""
    monkeypatch.setattr(stage, "STEP_TIMEOUT", 0.5)


def names(server: Server) -> list[str]:
    """The application_name of each session."""
    with server.admin() as admin:
        rows = admin.execute("SELECT coalesce(application_name, '') FROM pg_stat_activity")
        return [row[0] for row in rows.fetchall()]


def settings(size: int = 2, overflow: int = 1, **more: Any) -> dict[str, Any]:
    return {"pool": PoolSettings(size=size, overflow=overflow, **more).pool_options()}


@contextmanager
def running(
    conninfo: str,
    *,
    engine: str = OURS,
    options: dict[str, Any] | None = None,
    take_most: bool = False,
    **more: Any,
) -> Iterator[Iterator[Outcome]]:
    with (
        database(entry(conninfo, engine, OPTIONS=options or settings(), **more)) as alias,
        closing(drill(configured(alias), take_most=take_most)) as outcomes,
    ):
        yield outcomes


def drilled(conninfo: str, first: int | None = None, **more: Any) -> list[Outcome]:
    """The outcomes of a drill, or only the `first` ones."""
    with running(conninfo, **more) as outcomes:
        return list(islice(outcomes, first))


def verdicts(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.name: outcome.result for outcome in outcomes}


def seen(outcomes: list[Outcome], name: str) -> str:
    return next(outcome.seen for outcome in outcomes if outcome.name == name)


# Which promises are kept


def test_our_engine_keeps_every_promise(shared: Server) -> None:
    with program(COMMAND, shared, DB_POOL_RELEASE="transaction") as ours:
        result = ours.wait()
    assert (result.status, result.errors) == (0, ""), result.output
    assert "14 of 14 promises were kept." in result.output
    assert [name for name in NAMES if f"  ✓ {name} " in result.output] == NAMES
    assert "20 connections on the server" in result.output
    assert "30 of 30 checked out at once, 30 on the server" in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_the_drill_of_the_stock_engine_ends_with_half_of_the_promises_broken(
    shared: Server,
) -> None:
    with program([*COMMAND, ON_STOCK], shared) as stock:
        result = stock.wait(60)
    assert (result.status, result.errors) == (1, ""), result.output
    said = " ".join(result.output.split())
    assert "6 of 14 promises were kept; broken: explanation, pre-ping, recycle, deadline," in said
    assert "leak, session" in said
    assert "30 were ended; the next checkout failed after " in said


def test_a_short_timeout_is_drilled_as_it_is(shared: Server) -> None:
    outcomes = drilled(shared.conninfo, 3, options=settings(timeout=0.2))
    assert verdicts(outcomes) == dict.fromkeys(NAMES[:3], "kept")
    assert " s of 0.2 s; still 3 on the server" in seen(outcomes, "timeout")


def test_what_is_not_configured_is_skipped(shared: Server) -> None:
    options = settings(recycle=-1)
    outcomes = drilled(shared.conninfo, options=options, CONN_HEALTH_CHECKS=False)
    skipped = [outcome.name for outcome in outcomes if outcome.result == "skipped"]
    assert skipped == ["pre-ping", "recycle", "deadline", "release"]
    assert seen(outcomes, "recycle") == "recycle is off: no connection expires"


def test_a_replica_need_not_accept_writes(shared: Server) -> None:
    outcomes = drilled(shared.conninfo, 9, TEST={"MIRROR": "default"})
    assert verdicts(outcomes)["read-only"] == "skipped"
    assert seen(outcomes, "read-only") == "the project writes nothing through this alias"


def test_with_leak_tracing_the_place_of_a_checkout_is_recorded(shared: Server) -> None:
    outcomes = drilled(shared.conninfo, 4, ABS_ORM_APP={"leak_seconds": 60.0})
    assert "with a record of where it was taken" in seen(outcomes, "explanation")


def test_a_task_that_holds_a_connection_of_the_pool_keeps_it_and_the_promises_hold(
    shared: Server,
) -> None:
    with (
        database(entry(shared.conninfo, OPTIONS=settings())) as alias,
        held_by_tasks(alias, "BEGIN"),
        closing(drill(configured(alias))) as outcomes,
    ):
        assert set(verdicts(list(outcomes)).values()) == {"kept", "skipped"}
        [holder] = connections[alias].pool.holders()  # type: ignore[attr-defined]
        assert holder.who == f"task {STREAM!r}"


# Privileges


def test_a_role_without_privileges_can_drill(shared: Server) -> None:
    outcomes = drilled(f"{shared.conninfo} user=app", 6)
    assert verdicts(outcomes) == dict.fromkeys(NAMES[:6], "kept")


def test_what_the_role_may_not_do_is_skipped_with_the_reason(server: Server) -> None:
    with server.admin() as admin:
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_terminate_backend FROM PUBLIC")
    outcomes = drilled(f"{server.conninfo} user=app", 6)
    assert verdicts(outcomes) == dict.fromkeys(NAMES[:5], "kept") | {"pre-ping": "skipped"}
    assert "permission denied for function pg_terminate_backend" in seen(outcomes, "pre-ping")


def test_a_role_that_may_not_count_sessions_needs_yes(server: Server) -> None:
    with server.admin() as admin:
        admin.execute("REVOKE SELECT ON pg_stat_activity FROM PUBLIC")
    with pytest.raises(Refused, match=r"does not say how many .*permission denied.*--yes"):
        drilled(f"{server.conninfo} user=app")
    outcomes = drilled(f"{server.conninfo} user=app", 5, take_most=True)
    assert verdicts(outcomes) == {
        "size": "skipped", "overflow": "skipped", "timeout": "skipped", "explanation": "kept",
        "return": "kept",
    }  # fmt: skip


def test_sessions_of_others_are_left_alone(shared: Server) -> None:
    name = "abs_orm_app drill 1 abcd"
    with psycopg.connect(f"{shared.conninfo} application_name='{name}'") as other:
        assert verdicts(drilled(shared.conninfo, 6))["pre-ping"] == "kept"
        assert other.execute("SELECT 1").fetchone() == (1,)


# How many connections are free


@contextmanager
def occupied(server: Server, connections: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(psycopg.connect(server.conninfo))
        yield


@pytest.mark.server({"max_connections": "10"})
def test_more_than_half_of_the_free_connections_are_not_taken(server: Server) -> None:
    with occupied(server, 7):
        with pytest.raises(Refused) as refused:
            drilled(server.conninfo, options=settings(20, 10))
        assert refused.value.failure.cause == (
            "The drill needs 31 connections (20 + 10, and 1 to count them), but 3 are free (this"
            " role may open 10 (max_connections 10, a superuser), and 7 are in use), and it uses at"
            " most half of them: 1."
        )
        assert "--yes" in refused.value.failure.hint


def test_with_yes_the_drill_takes_all_connections_it_needs(shared: Server) -> None:
    options = settings(1, 1)
    outcomes = drilled(f"{shared.conninfo} user=limited", 4, options=options, take_most=True)
    assert verdicts(outcomes) == dict.fromkeys(NAMES[:4], "kept")


@pytest.mark.server({"max_connections": "10"})
@pytest.mark.usefixtures("hasty")
def test_with_yes_and_too_few_connections_the_promise_of_the_size_is_broken(server: Server) -> None:
    with occupied(server, 7):
        outcomes = drilled(server.conninfo, 5, options=settings(20, 10), take_most=True)
        assert verdicts(outcomes) == {
            "size": "broken", "overflow": "broken", "timeout": "skipped",
            "explanation": "skipped", "return": "kept",
        }  # fmt: skip
        why = "on the server, which had 2 left for this role"
        assert seen(outcomes, "size") == f"2 of 20 connections {why}"
        assert seen(outcomes, "overflow") == f"2 of 30 checked out at once, 2 {why}"


# Refusals


def test_a_drill_is_refused_with_the_cause_when_the_server_is_down() -> None:
    with pytest.raises(Refused, match="Connection refused"):
        drilled("host=127.0.0.1 port=1 user=app dbname=x")


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (SQLITE, "It is not PostgreSQL"),
        (entry("host=x port=1 user=x dbname=x"), "In null mode this process has no pool"),
        (entry("host=x port=1 user=x dbname=x", CONN_MAX_AGE=60), "In persistent mode"),
    ],
)
def test_an_alias_without_a_pool_has_nothing_to_drill(given: dict[str, Any], cause: str) -> None:
    with database(given) as alias:
        with pytest.raises(NoPool, match=cause):
            next(drill(configured(alias)))
        out = StringIO()
        with pytest.raises(SystemExit):
            call_command("check_pool", "--drill", "--database", alias, "--format=json", stdout=out)
    document = json.loads(out.getvalue())
    assert document["exit_code"] == 1  # nothing was shown
    assert document["drills"][0]["ok"] is None


def test_a_drill_is_refused_for_impossible_pool_settings(shared: Server) -> None:
    with pytest.raises(Refused, match="max_size must be"):
        drilled(shared.conninfo, options={"pool": {"min_size": 4, "max_size": 2}})


def test_a_drill_is_refused_for_an_invalid_time_zone(shared: Server) -> None:
    with pytest.raises(Refused, match="No time zone found"):
        drilled(shared.conninfo, TIME_ZONE="Nowhere")


@needs_pgbouncer
def test_a_drill_is_refused_behind_a_pooler(shared: Server) -> None:
    with (
        PgBouncer(shared, pool_mode="transaction") as pooler,
        pytest.raises(Refused, match="There is a pooler between"),
    ):
        drilled(pooler.conninfo)


# Interruptions


@pytest.mark.parametrize(
    ("after", "arguments", "encoding"),
    [
        ("✓ size", [], "utf-8"),
        ("+ explanation", [], "ascii"),
        ("✓ recycle", [], "utf-8"),
        ("✗ recycle", [ON_STOCK], "utf-8"),
    ],
)
def test_an_interrupted_drill_leaves_nothing_behind(
    shared: Server, after: str, arguments: list[str], encoding: str
) -> None:
    with program([*COMMAND, *arguments], shared, PYTHONIOENCODING=encoding) as process:
        wait_until(lambda: after in process.output, after)
        sleep(0.8 * ("recycle" in after))  # until a checkout tries the hung connection
        result = process.stop(signal.SIGINT)
        assert result.status == 130
        assert result.errors == "Interrupted; all connections are closed.\n"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_a_drill_ends_when_the_server_dies(server: Server, engine: str) -> None:
    with running(server.conninfo, engine=engine) as outcomes:
        assert next(outcomes).result == "kept"
        server.kill()
        rest = list(outcomes)
    assert [outcome.result for outcome in rest] == ["broken"]


@pytest.mark.usefixtures("hasty")
def test_a_drill_ends_when_the_server_hangs(server: Server) -> None:
    began = monotonic()
    with running(server.conninfo) as outcomes:
        assert next(outcomes).result == "kept"
        server.suspend()
        rest = list(outcomes)
    assert monotonic() - began < 30
    assert [outcome.result for outcome in rest] == ["broken"]
    server.resume()


# Output


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_the_json_has_every_promise_and_a_terminal_shows_the_progress(shared: Server) -> None:
    out, terminal = StringIO(), Terminal()
    extra = {"release": "transaction", "reset": "never"}
    with database(entry(shared.conninfo, OPTIONS=settings(), ABS_ORM_APP=extra)) as alias:
        arguments = ("--drill", "--database", alias, "--format", "json")
        with suppress(SystemExit):
            call_command("check_pool", *arguments, stdout=out, stderr=terminal)
    document = json.loads(out.getvalue())
    [found] = document["drills"]
    outcomes = {outcome["name"]: outcome for outcome in found["outcomes"]}
    assert [name for name in outcomes if outcomes[name]["result"] != "kept"] == ["session"]
    assert outcomes["session"]["result"] == "skipped"
    between = "0 held after a query, 1 in a transaction, 0 after it"
    assert outcomes["release"]["seen"] == between
    assert (found["alias"], found["ok"], found["refused"]) == (alias, True, None)
    assert list(outcomes) == NAMES
    assert all("\x1b[K  " + p["promise"] + " ..." in terminal.getvalue() for p in found["outcomes"])
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_the_json_tells_why_a_drill_was_refused(shared: Server) -> None:
    out = StringIO()
    with database(entry(f"{shared.conninfo} user=limited", OPTIONS=settings())) as alias:
        arguments = ("--drill", "--database", alias, "--format", "json")
        with pytest.raises(SystemExit):
            call_command("check_pool", *arguments, stdout=out)
    [found] = json.loads(out.getvalue())["drills"]
    assert (found["ok"], found["outcomes"]) == (False, [])
    assert "3 are free (role 'limited' may open 3" in found["refused"]["cause"]


def test_the_faults_of_a_drill_are_not_logged(
    shared: Server, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("abs_orm_app.pool")
    before = logger.level
    with caplog.at_level(logging.DEBUG):
        drilled(shared.conninfo, 6)
    assert not [
        record for record in caplog.records if record.name in ("abs_orm_app.pool", "psycopg.pool")
    ]
    assert logger.level == before


def test_an_entry_written_by_hand_is_told_which_part_of_it_turns_the_pool_on() -> None:
    with database(entry("host=x port=1 user=x dbname=x")) as alias, pytest.raises(NoPool) as none:
        next(drill(configured(alias)))
    assert 'setdefault("OPTIONS", {})["pool"] = {' in none.value.failure.hint
    environ = {"DATABASE_URL": "postgresql:///x", "DB_POOL_MODE": "null"}
    with database(database_from_env(environ=environ)) as alias, pytest.raises(NoPool) as none:
        next(drill(configured(alias)))
    assert none.value.failure.hint == "To turn the pool on, set DB_POOL_MODE=pool."
