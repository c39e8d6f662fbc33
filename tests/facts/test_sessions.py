"""The sessions on a real server."""

from __future__ import annotations

import psycopg
import pytest

from abs_orm_app.facts.sessions import Application, Fleet, read_fleet
from tests.support.pools import Call
from tests.support.servers import Server, wait_until

pytestmark = pytest.mark.server(roles=["app LOGIN"], sql=["CREATE TABLE t (id int)"])


def see(server: Server, user: str = "postgres") -> Fleet:
    with psycopg.connect(f"{server.conninfo} user={user}", autocommit=True) as connection:
        return read_fleet(connection)


def connect(server: Server, name: str) -> psycopg.Connection:
    return psycopg.connect(server.conninfo, application_name=name)


def group(found: Fleet, application: str) -> Application:
    [one] = [group for group in found.groups if group.application == application]
    return one


def test_sessions_are_grouped_by_application_and_host_and_by_process(shared: Server) -> None:
    names = ("shop@web1:7", "shop@web1:7", "shop@web1:12", "shop@web2:7", "psql")
    held = [connect(shared, name) for name in names]
    held[0].execute("SELECT 1")
    found = see(shared)
    for connection in held:
        connection.close()
    assert [(g.application, g.host, g.processes, g.sessions) for g in found.groups] == [
        ("shop", "web1", 2, 3),
        ("psql", "", None, 1),
        ("shop", "web2", 1, 1),
    ]
    assert sum(group.sessions for group in found.groups) == 5
    assert [
        (p.application, p.host, p.pid, p.sessions, p.in_transaction) for p in found.processes
    ] == [("shop", "web1", 7, 2, 1), ("shop", "web1", 12, 1, 0), ("shop", "web2", 7, 1, 0)]


def test_sessions_are_counted_by_state_with_the_age_of_the_oldest(shared: Server) -> None:
    with connect(shared, "shop") as first, connect(shared, "shop") as second:
        first.execute("SELECT 1")
        sleeping = Call(second.execute, "SELECT pg_sleep(60)")
        wait_until(lambda: group(see(shared), "shop").active == 1, "the query")
        seen = group(see(shared), "shop")
        second.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            sleeping.result(10)
    assert (seen.active, seen.idle, seen.in_transaction, seen.unknown) == (1, 0, 1, 0)
    assert seen.oldest_active is not None
    assert 0 <= seen.oldest_active < 10


def test_a_blocked_session_is_listed_with_its_blocker(shared: Server) -> None:
    with connect(shared, "locker@web1:7") as locker, connect(shared, "waiter@web2:9") as waiter:
        pid = locker.info.backend_pid
        locker.execute("LOCK TABLE t")
        waiting = Call(waiter.execute, "SELECT * FROM t")
        wait_until(lambda: bool(see(shared).blocked), "the session to wait")
        [blocked] = see(shared).blocked
        locker.rollback()
        waiting.result(10)
    assert (blocked.session.application, blocked.session.host) == ("waiter", "web2")
    [blocker] = blocked.blockers
    assert (blocker.pid, blocker.application) == (pid, "locker")
    assert blocker.state == "idle in transaction"


def test_the_wait_for_a_lock_is_measured_from_its_own_start(shared: Server) -> None:
    with connect(shared, "locker") as locker, connect(shared, "waiter") as waiter:
        locker.execute("LOCK TABLE t")
        slow = "DO $$ BEGIN PERFORM pg_sleep(1); LOCK TABLE t; END $$"
        waiting = Call(waiter.execute, slow)
        wait_until(lambda: bool(see(shared).blocked), "the session to wait")
        [blocked] = see(shared).blocked
        locker.rollback()
        waiting.result(10)
    assert blocked.session.seconds is not None
    assert blocked.seconds is not None
    assert 0 <= blocked.seconds < blocked.session.seconds - 0.9


def test_sessions_that_a_role_may_not_inspect_are_counted(shared: Server) -> None:
    with connect(shared, "secret"):
        [seen] = see(shared, "app").groups
    assert (seen.application, seen.unknown, seen.sessions) == ("secret", 1, 1)


def test_sessions_of_other_databases_are_not_counted(shared: Server) -> None:
    with psycopg.connect(f"{shared.conninfo} dbname=template1", application_name="elsewhere"):
        assert see(shared).groups == ()
