"""The connection test of `check_pool`: it sets up a connection like Django, and it ends."""

from __future__ import annotations

import re
from threading import Event
from time import monotonic
from typing import Any

import pytest
from django.db import connections
from django.db.backends.signals import connection_created

from abs_orm_app.facts import report as module
from abs_orm_app.facts.connection_test import ConnectionTest
from abs_orm_app.facts.databases import configured
from abs_orm_app.facts.report import report
from abs_orm_app.facts.server import ServerFacts
from tests.support.pgbouncers import PgBouncer, needs_pgbouncer
from tests.support.projects import OURS, STOCK, database, entry, of_environment
from tests.support.servers import ONE_CONNECTION, Server, wait_until

pytestmark = [
    pytest.mark.usefixtures("unblocked"),
    pytest.mark.server(roles=["app LOGIN", "owner"]),
]

POOL = {"pool": {"min_size": 20, "max_size": 30}}


def looked_at(given: dict[str, Any]) -> ConnectionTest:
    with database(given) as alias:
        found = report(configured(alias)).test
    assert found
    return found


@pytest.mark.parametrize("mode", ["pool", "persistent", "pgbouncer", "null"])
def test_a_role_that_cannot_be_assumed_is_a_failure(shared: Server, mode: str) -> None:
    url = f"{shared.url}?assume_role=nosuch"
    ran = of_environment(DATABASE_URL=url, DB_POOL_MODE=mode)
    assert ran.code == 1
    assert 'other: the server refuses the connection: role "nosuch" does not exist.' in ran.out


@pytest.mark.parametrize("options", [{}, POOL], ids=["bare", "pool"])
def test_a_role_that_may_not_be_assumed_is_a_failure(
    shared: Server, options: dict[str, Any]
) -> None:
    options = {**options, "assume_role": "owner"}
    failure = looked_at(entry(f"{shared.conninfo} user=app", OPTIONS=options)).failure
    assert failure
    assert 'permission denied to set role "owner"' in failure.cause
    assert looked_at(entry(shared.conninfo, OPTIONS=options)).failure is None


@pytest.mark.parametrize("engine", [OURS, STOCK])
@pytest.mark.parametrize("options", [{}, POOL], ids=["bare", "pool"])
def test_an_invalid_isolation_level_is_a_failure(
    shared: Server, engine: str, options: dict[str, Any]
) -> None:
    options = {**options, "isolation_level": "foo"}
    found = looked_at(entry(shared.conninfo, engine, OPTIONS=options))
    assert found.failure
    assert "Invalid transaction isolation level foo" in found.failure.cause
    assert found.connect_ms is not None
    wait_until(lambda: shared.sessions() == 0, "the session to end")


@pytest.mark.parametrize("options", [{}, POOL], ids=["bare", "pool"])
def test_an_invalid_time_zone_is_a_failure(shared: Server, options: dict[str, Any]) -> None:
    found = looked_at(entry(shared.conninfo, OPTIONS=options, TIME_ZONE="Nowhere"))
    assert found.failure
    assert "No time zone found with key Nowhere" in found.failure.cause
    assert found.failure.hint == "Correct the settings of this database."


@pytest.mark.parametrize("engine", [OURS, STOCK])
@pytest.mark.parametrize("options", [{}, POOL], ids=["bare", "pool"])
def test_the_projects_connection_created_handlers_run_with_the_alias(
    shared: Server, engine: str, options: dict[str, Any]
) -> None:
    seen = []

    def set_up(connection: Any, **_: Any) -> None:
        seen.append(connection)
        with connection.cursor() as cursor:
            cursor.execute("SET work_mem = '8MB'")

    connection_created.connect(set_up)
    try:
        with database(entry(shared.conninfo, engine, OPTIONS=options)) as alias:
            found = report(configured(alias)).test
            wrapper: Any = connections[alias]
            assert wrapper.connection is None
            assert wrapper not in seen
            assert alias not in type(wrapper)._connection_pools or wrapper.pool.closed
    finally:
        connection_created.disconnect(set_up)
    assert found
    assert found.failure is None
    assert {connection.alias for connection in seen} == {"other"}


@pytest.mark.parametrize("options", [{}, POOL], ids=["bare", "pool"])
@pytest.mark.server(ONE_CONNECTION, roles=["app LOGIN"])
def test_one_connection_is_enough(server: Server, options: dict[str, Any]) -> None:
    for _ in range(10):
        found = looked_at(entry(f"{server.conninfo} user=app", OPTIONS=options))
        assert found.failure is None
        wait_until(lambda: server.sessions() == 0, "the session to end")


@pytest.mark.parametrize("options", [{}, POOL], ids=["bare", "pool"])
def test_a_setup_that_hangs_ends_in_a_failure(
    shared: Server, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(module, "MARGIN", 0.5)
    over = Event()

    def hang(**_: Any) -> None:
        over.wait(30)

    connection_created.connect(hang)
    began = monotonic()
    try:
        options = {**options, "connect_timeout": 1}
        found = looked_at(entry(shared.conninfo, OPTIONS=options))
    finally:
        over.set()
        connection_created.disconnect(hang)
    assert monotonic() - began < 1.5 + 10
    assert found.failure
    assert re.fullmatch(r"no answer within 1\.5 seconds: .* answers now\.", found.failure.cause)
    wait_until(lambda: shared.sessions() == 0, "the session to end")


@pytest.mark.parametrize("options", [{}, POOL], ids=["bare", "pool"])
def test_a_host_that_does_not_answer_leaves_time_for_the_others(
    shared: Server, server: Server, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(module, "MARGIN", 1.0)
    server.suspend()
    hosts = {"HOST": ",".join(["127.0.0.1"] * 3)}
    hosts["PORT"] = f"{server.port},{server.port},{shared.port}"
    options = {**options, "connect_timeout": 2}
    found = looked_at({**entry(shared.conninfo, OPTIONS=options), **hosts})
    server.resume()
    assert found.failure is None


@needs_pgbouncer
def test_the_pooler_of_the_host_that_answered_is_examined(shared: Server, server: Server) -> None:
    with PgBouncer(shared, pool_mode="transaction") as pooler:
        server.suspend()
        hosts = {"HOST": f"{server.socket_dir},{shared.socket_dir}"}
        hosts["PORT"] = f"{server.port},{pooler.port}"
        given = entry(shared.conninfo, OPTIONS={"connect_timeout": 2})
        with database({**given, **hosts}) as alias:
            found = report(configured(alias)).server
        server.resume()
    assert isinstance(found, ServerFacts)
    assert found.pooler
    assert found.pooler.pool_mode == "transaction"
