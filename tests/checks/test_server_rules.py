"""The rules on a server's sessions, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from django.test import override_settings

from abs_orm_app.checks.collect import all_findings, ask_servers
from abs_orm_app.checks.finding import Finding
from abs_orm_app.checks.server_rules import server_not_asked, session_findings
from abs_orm_app.facts.databases import configured
from abs_orm_app.facts.failure import Failure
from abs_orm_app.facts.report import report
from abs_orm_app.facts.server import read_server
from tests.support.aliases import ids
from tests.support.projects import OURS, STOCK, database, entry
from tests.support.servers import Server

pytestmark = [pytest.mark.usefixtures("unblocked"), pytest.mark.server(roles=["app LOGIN"])]

POOL = {"min_size": 2, "max_size": 3, "timeout": 30.0, "max_lifetime": 3600.0}


@contextmanager
def role_has(server: Server, **settings: str) -> Iterator[None]:
    """Give the role `app` these settings in its sessions until the end of the block."""
    with server.admin() as admin:
        try:
            for name, value in settings.items():
                admin.execute(f"ALTER ROLE app SET {name} = '{value}'")
            yield
        finally:
            admin.execute("ALTER ROLE app RESET ALL")


def ask(conninfo: str, alias: str = "other", **more: Any) -> list[Finding]:
    """The findings for an alias at this address, with the facts of the real server."""
    engine = more.pop("engine", OURS)
    options = {"pool": POOL, **more.pop("OPTIONS", {})}
    given = entry(f"{conninfo} user=app", engine, OPTIONS=options, **more)
    with database(given) as name, psycopg.connect(f"{conninfo} user=app") as connection:
        asked = replace(configured(name), alias=alias, written=alias == "default")
        return session_findings(asked, read_server(connection))


def named(found: list[Finding], number: str) -> Finding:
    [finding] = [finding for finding in found if finding.id == f"abs_orm_app.{number}"]
    return finding


GOOD = {"statement_timeout": "15s", "idle_in_transaction_session_timeout": "60s"}


def test_a_role_with_timeouts_has_no_finding(shared: Server) -> None:
    with role_has(shared, **GOOD):
        assert ask(shared.conninfo) == ask(shared.tcp_conninfo) == []
        assert ask(shared.conninfo, ATOMIC_REQUESTS=True) == []
        assert ask(shared.conninfo, "default") == []


# Idle sessions


def test_an_idle_session_timeout_below_the_recycle_time_is_found(shared: Server) -> None:
    with role_has(shared, **GOOD, idle_session_timeout="10min"):
        found = ask(shared.conninfo)
    assert ids(found) == ["W022"]
    assert "idle for 600 s" in found[0].message
    assert found[0].remedy.startswith("Set the recycle time to 600 s or less")
    assert found[0].fix == "ALTER ROLE app SET idle_session_timeout = 0;"


@pytest.mark.parametrize(
    ("health_checks", "said"), [(True, "pre-ping replaces"), (False, "get stale connections")]
)
def test_the_message_about_idle_sessions_depends_on_the_pre_ping(
    shared: Server, health_checks: bool, said: str
) -> None:
    with role_has(shared, **GOOD, idle_session_timeout="10min"):
        [found] = ask(shared.conninfo, CONN_HEALTH_CHECKS=health_checks)
    assert said in found.message


def test_a_recycle_time_below_the_idle_timeout_is_enough_except_for_djangos_pool(
    shared: Server,
) -> None:
    options = {"pool": {**POOL, "max_lifetime": 600.0}}
    with role_has(shared, **GOOD, idle_session_timeout="10min"):
        assert ask(shared.conninfo, OPTIONS=options) == []
        assert ids(ask(shared.conninfo, OPTIONS=options, engine=STOCK)) == ["W022"]


@pytest.mark.parametrize(
    ("age", "expected"), [(None, ["W022"]), (900, ["W022"]), (600, []), (0, [])]
)
def test_persistent_connections_are_checked_as_well(
    shared: Server, age: int | None, expected: list[str]
) -> None:
    with role_has(shared, **GOOD, idle_session_timeout="10min"):
        found = ask(shared.conninfo, OPTIONS={"pool": None}, CONN_MAX_AGE=age)
    assert ids(found) == expected


# Statements and transactions


def test_missing_statement_and_transaction_timeouts_are_information(shared: Server) -> None:
    found = ask(shared.conninfo)
    assert ids(found) == ["I021", "I022"]
    assert "ATOMIC_REQUESTS" not in found[1].message
    assert "ATOMIC_REQUESTS" in named(ask(shared.conninfo, ATOMIC_REQUESTS=True), "I022").message


def test_a_statement_timeout_in_the_options_counts(shared: Server) -> None:
    given = f"{shared.conninfo} options='-c statement_timeout=5s'"
    assert ids(ask(given)) == ["I022"]


def test_a_short_idle_in_transaction_timeout_is_information(shared: Server) -> None:
    settings = {**GOOD, "idle_in_transaction_session_timeout": "30s"}
    with role_has(shared, **settings):
        assert ids(ask(shared.conninfo, ATOMIC_REQUESTS=True)) == ["I023"]
        assert ask(shared.conninfo) == []


# A remote host: this machine, by a name that does not show it


def remote(server: Server) -> str:
    return f"hostaddr=127.0.0.1 {server.tcp_conninfo.replace('127.0.0.1', 'db.example')}"


def test_keepalives_that_are_off_are_found_on_a_remote_host(shared: Server) -> None:
    with role_has(shared, **GOOD, tcp_keepalives_idle="60"):
        assert ask(remote(shared)) == []
        assert ids(ask(remote(shared), OPTIONS={"keepalives": "0"})) == ["W023"]
        assert ids(ask(remote(shared), OPTIONS={"keepalives": 0})) == ["W023"]
        assert ask(shared.tcp_conninfo, OPTIONS={"keepalives": "0"}) == []
        assert ask(shared.conninfo, OPTIONS={"keepalives": "0"}) == []


def test_a_long_keepalive_idle_time_is_information(shared: Server) -> None:
    with role_has(shared, **GOOD, tcp_keepalives_idle="7200"):
        found = ask(remote(shared))
        assert ask(shared.tcp_conninfo) == []
    assert ids(found) == ["I024"]
    assert found[0].message == (
        "The server checks whether a silent client is still there only after 7200 s"
        " (tcp_keepalives_idle). Until then, the sessions of a machine that has failed keep their"
        " connections and locks."
    )


def test_a_server_that_never_looks_for_its_clients_is_described_in_english(shared: Server) -> None:
    with (
        database(entry(f"{remote(shared)} user=app", OPTIONS={"pool": POOL})) as alias,
        psycopg.connect(f"{remote(shared)} user=app") as connection,
    ):
        server = read_server(connection)
        silent = replace(server, settings={**server.settings, "tcp_keepalives_idle": 0.0})
        found = named(session_findings(configured(alias), silent), "I024")
    assert found.message.startswith("The server never checks whether a silent client is still")


# A server that is read only


def test_a_read_only_server_behind_the_default_alias_is_found(shared: Server) -> None:
    with role_has(shared, **GOOD, default_transaction_read_only="on"):
        [found] = ask(shared.conninfo, "default")
        assert ask(shared.conninfo, "replica") == []
        for_writes = {"OPTIONS": {"target_session_attrs": "read-write"}}
        assert [each.number for each in ask(shared.conninfo, "other", **for_writes)] == ["W024"]
    assert found.id == "abs_orm_app.W024"
    assert "read-only for this role" in found.message


def test_a_standby_behind_the_default_alias_is_found(server: Server) -> None:
    server.stop()
    (server.data / "standby.signal").touch()
    server.start()
    [found] = [f for f in ask(server.conninfo, "default") if f.id.endswith("W024")]
    assert "is a standby" in found.message
    assert "target_session_attrs=read-write" in found.hint


# Where they are shown


def test_warnings_are_always_shown_and_information_in_production(shared: Server) -> None:
    options = {"pool": POOL}
    with (
        role_has(shared, idle_session_timeout="10min"),
        database(entry(f"{shared.conninfo} user=app", OPTIONS=options)) as alias,
    ):
        assert ids(ask_servers([configured(alias)])) == ["W022"]
        reports = [report(configured(alias))]
        with override_settings(DEBUG=True):
            assert ids(all_findings(reports)) == ["W022"]
        with override_settings(DEBUG=False):
            assert ids(all_findings(reports)) == ["W022", "I021", "I022"]


def test_a_server_that_does_not_answer_is_no_error() -> None:
    finding = server_not_asked("default", Failure(cause="It is down.", hint="Start it."))
    assert finding.id == "abs_orm_app.I001"
