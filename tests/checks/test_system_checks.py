"""The findings as system checks: when they run, and what happens when a server is down."""

from __future__ import annotations

from io import StringIO
from time import monotonic
from typing import Any

import django
import pytest
from django.core import checks
from django.core.checks import CheckMessage, run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings

from abs_orm_app.checks.system_checks import TAG
from tests.support.projects import OURS, SQLITE, STOCK, database, entry, manage
from tests.support.servers import PASSWORD_OVER_TCP, Server, wait_until

pytestmark = pytest.mark.server({"max_connections": "50"}, roles=["app LOGIN"])

POOL = {"pool": {"min_size": 20, "max_size": 30}}


def found(**arguments: Any) -> list[CheckMessage]:
    """Our messages, except that an alias does not use the pool: many of these do not."""
    ours = [m for m in run_checks(**arguments) if (m.id or "").startswith("abs_orm_app.")]
    return [m for m in ours if m.id not in ("abs_orm_app.I002", "abs_orm_app.W006")]


def test_the_suites_own_settings_have_no_finding() -> None:
    assert found() == []


def test_settings_are_checked_whenever_django_checks() -> None:
    with database({"ENGINE": OURS, "NAME": "x", "OPTIONS": {"pool": {"min_sise": 4}}}):
        [message] = found()
    assert str(message) == (
        "DATABASES['other']: (abs_orm_app.E004) "
        "psycopg_pool has no parameter 'min_sise' (did you mean 'min_size'?).\n"
        "\tHINT: Correct or remove it in OPTIONS['pool']. (manage.py check_pool --explain E004)"
    )
    assert message.level == checks.ERROR


def test_a_finding_is_silenced_by_its_id() -> None:
    broken = {"ENGINE": OURS, "NAME": "x", "OPTIONS": {"pool": {"min_sise": 4}}}
    with database(broken):
        with pytest.raises(SystemCheckError):
            call_command("check", stderr=StringIO())
        with override_settings(SILENCED_SYSTEM_CHECKS=["abs_orm_app.E004"]):
            call_command("check", stderr=StringIO())


def test_production_rules_run_with_deploy_only() -> None:
    with database({"ENGINE": STOCK, "NAME": "x", "HOST": "db.example"}, alias="bare"):
        assert found() == []
        deploy = found(tags=[TAG], include_deployment_checks=True)
    assert {(m.obj, m.id) for m in deploy} >= {
        ("DATABASES['bare']", "abs_orm_app.W011"),
        ("DATABASES['bare']", "abs_orm_app.W015"),
    }


def test_a_remote_default_alias_is_asked_to_say_which_server_it_needs() -> None:
    """And the line that the finding names is all that it takes."""
    url, line = "postgresql://app@db.example/shop?sslmode=verify-full", "target_session_attrs"
    warned = manage("check", "--deploy", "--tag", TAG, DATABASE_URL=url).stderr
    assert "(abs_orm_app.W020)" in warned
    assert f"?{line}=read-write" in warned
    done = manage("check", "--deploy", "--tag", TAG, DATABASE_URL=f"{url}&{line}=read-write")
    assert "W020" not in done.stderr


def test_an_unknown_variable_is_found_with_the_prefix_of_its_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REPLICA_DB_POOL_SISE", "5")
    assert found() == []
    with database({"ENGINE": OURS, "NAME": "x", "ABS_ORM_APP": {"prefix": "REPLICA_"}}):
        [message] = found()
    assert message.id == "abs_orm_app.W001"
    assert "did you mean REPLICA_DB_POOL_SIZE?" in message.msg


def test_an_invalid_number_of_processes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_POOL_PROCESSES", "many")
    [message] = found()
    assert message.id == "abs_orm_app.E008"
    assert "DB_POOL_PROCESSES='many'" in message.msg


@pytest.mark.parametrize("engine", [OURS, STOCK])
def test_the_budget_is_checked_with_database_only(
    shared: Server, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_POOL_PROCESSES", "2")
    with database(entry(f"{shared.conninfo} user=app", engine, OPTIONS=POOL)) as alias:
        assert found() == []
        assert found(tags=[TAG]) == []
        [message] = found(databases=[alias])
    assert message.id == "abs_orm_app.W021"
    assert message.msg.startswith(
        "2 processes x (20 + 10) for 'other' = 60 connections; "
        "this role may open 47 (max_connections 50 - 3 reserved)."
    )


def test_web_concurrency_is_the_default_number_of_processes(
    shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    with database(entry(shared.conninfo, OPTIONS=POOL)) as alias:
        [message] = found(databases=[alias])
    assert message.msg.startswith("3 processes x ")
    assert message.level == checks.ERROR


def test_aliases_on_one_server_are_added_up(
    shared: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_POOL_PROCESSES", "1")
    with (
        database(entry(f"{shared.conninfo} user=app", OPTIONS=POOL)) as one,
        database(entry(f"{shared.tcp_conninfo} user=app", OPTIONS=POOL), alias="more") as more,
    ):
        assert found(databases=[one]) == []
        [message] = found(databases=[one, more])
    assert "((20 + 10) for 'other' + (20 + 10) for 'more') = 60 connections" in message.msg


def test_no_session_is_left_on_the_server(shared: Server) -> None:
    with database(entry(shared.conninfo, OPTIONS=POOL)) as alias:
        found(databases=[alias])
        wait_until(lambda: shared.sessions() == 0, "the session to end")


def test_aliases_without_a_pool_are_not_connected_to() -> None:
    with (
        database(entry("host=127.0.0.1 port=1 user=x dbname=x")) as one,
        database(SQLITE, alias="lite") as lite,
    ):
        assert found(databases=[one, lite]) == []


def test_a_server_that_is_down_fails_no_check() -> None:
    with database(entry("host=127.0.0.1 port=1 user=x dbname=x", OPTIONS=POOL)) as alias:
        [message] = found(databases=[alias])
        call_command("check", databases=[alias], fail_level="WARNING", stderr=StringIO())
    assert message.id == "abs_orm_app.I001"
    assert "Connection refused" in message.msg


@pytest.mark.server(hba=PASSWORD_OVER_TCP, roles=["app LOGIN PASSWORD 'right'"])
def test_a_wrong_password_fails_no_check_and_is_not_shown(server: Server) -> None:
    given = entry(f"{server.tcp_conninfo} user=app", PASSWORD="s3cret", OPTIONS=POOL)
    with database(given) as alias:
        [message] = found(databases=[alias])
    assert message.id == "abs_orm_app.I001"
    assert "s3cret" not in str(message)


def test_a_server_that_hangs_delays_a_check_by_some_seconds_only(server: Server) -> None:
    with database(entry(server.conninfo, OPTIONS=POOL)) as alias:
        server.suspend()
        began = monotonic()
        [message] = found(databases=[alias])
        assert monotonic() - began < 5 + 10
        server.resume()
    assert message.id == "abs_orm_app.I001"
    assert "no answer within 5 seconds" in message.msg


def test_migrate_reports_a_database_that_is_down() -> None:
    down = "postgresql://app:s3cret@127.0.0.1:1/shop"
    done = manage("migrate", DATABASE_URL=down, DB_POOL_TIMEOUT="0.5")
    assert done.returncode == 1
    assert "abs_orm_app.I001" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.skipif(django.VERSION < (6, 1), reason="older ones never pick databases themselves")
def test_our_tag_alone_does_not_connect() -> None:
    with database(entry("host=127.0.0.1 port=1 user=x dbname=x", OPTIONS=POOL)):
        assert found(tags=[TAG]) == []
