"""The facts that a server tells about itself, by the privileges of the role."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from abs_orm_app.facts.server import ServerFacts, read_server
from tests.support.projects import OURS, Ran, database, entry
from tests.support.servers import Server, major

LIMITS = {"max_connections": "20", "superuser_reserved_connections": "2"}
ROLES = ["app LOGIN CONNECTION LIMIT 7"]
RESERVED = 3 if major() >= 16 else 0
if RESERVED:
    LIMITS["reserved_connections"] = str(RESERVED)
    ROLES.append("vip LOGIN IN ROLE pg_use_reserved_connections")
SQL = ["ALTER ROLE app SET statement_timeout = '1500ms'", "CREATE DATABASE shop CONNECTION LIMIT 5"]

pytestmark = pytest.mark.server(LIMITS, roles=ROLES, sql=SQL)


def facts(conninfo: str) -> ServerFacts:
    with psycopg.connect(conninfo, connect_timeout=10) as connection:
        return read_server(connection)


def test_a_superuser_reads_its_role_and_address(shared: Server) -> None:
    found = facts(shared.conninfo)
    assert found.version.startswith(f"{major()}.")
    assert found.address == f"{shared.socket_dir}/.s.PGSQL.{shared.port}"
    assert (found.database, found.role, found.superuser) == ("postgres", "postgres", True)
    assert (found.tls, found.in_recovery, found.read_only) == (False, False, False)


def test_a_role_without_privileges_reads_the_limits(shared: Server) -> None:
    found = facts(f"{shared.conninfo} user=app dbname=shop")
    assert (found.superuser, found.may_use_reserved) == (False, False)
    assert (found.max_connections, found.superuser_reserved, found.reserved) == (20, 2, RESERVED)
    assert (found.role_limit, found.database_limit) == (7, 5)


@pytest.mark.skipif(not RESERVED, reason="PostgreSQL reserves connections for roles since 16")
def test_membership_in_pg_use_reserved_connections_is_read(shared: Server) -> None:
    found = facts(f"{shared.conninfo} user=vip")
    assert found.may_use_reserved
    assert (found.role_limit, found.database_limit) == (None, None)


def test_sessions_of_other_roles_are_counted_by_a_role_without_privileges(shared: Server) -> None:
    with (
        psycopg.connect(shared.conninfo),
        psycopg.connect(f"{shared.conninfo} user=app"),
        psycopg.connect(f"{shared.conninfo} user=app dbname=shop"),
    ):
        found = facts(f"{shared.conninfo} user=app dbname=shop")
    assert (found.used, found.used_by_role, found.used_in_database) == (3, 2, 1)


def test_sessions_of_the_same_project_are_counted_separately(shared: Server) -> None:
    named = f"{shared.conninfo} dbname=template1 application_name="
    names = ("shop@web1:7", "shop@web2:8", "shop", "shop@eu", "shopping", "''")
    held = [psycopg.connect(named + name) for name in names]
    elsewhere = psycopg.connect(f"{shared.conninfo} application_name=shop")
    found, unnamed = facts(f"{named}shop@web3:9"), facts(f"{named}''")
    for connection in (*held, elsewhere):
        connection.close()
    assert (found.used_in_database, found.used_by_project) == (6, 3)
    assert unnamed.used_by_project == 0


def test_a_tcp_address_includes_the_port_and_says_that_tls_is_off(shared: Server) -> None:
    found = facts(shared.tcp_conninfo)
    assert found.address == f"127.0.0.1:{shared.port}"
    assert (found.tls, found.tls_version, found.tls_cipher) == (False, None, None)


def test_settings_are_read_for_the_role_and_in_seconds(shared: Server) -> None:
    app, postgres = facts(f"{shared.conninfo} user=app"), facts(shared.conninfo)
    assert (app.settings["statement_timeout"], postgres.settings["statement_timeout"]) == (1.5, 0)
    assert app.settings["idle_in_transaction_session_timeout"] == 0


def test_keepalives_are_read_over_tcp(shared: Server) -> None:
    found = facts(shared.tcp_conninfo).settings
    assert found["tcp_keepalives_idle"] > 0
    assert found["tcp_keepalives_count"] > 0


def test_read_only_by_default_is_reported(shared: Server) -> None:
    options = "options='-c default_transaction_read_only=on'"
    assert facts(f"{shared.conninfo} {options}").read_only


def test_a_server_is_the_same_by_socket_and_tcp_and_in_any_time_zone(shared: Server) -> None:
    by_socket = facts(f"{shared.conninfo} options='-c TimeZone=Asia/Tokyo'")
    by_tcp = facts(f"{shared.tcp_conninfo} user=app dbname=shop")
    assert by_socket.identity == by_tcp.identity


def test_two_servers_have_different_identities(shared: Server, server: Server) -> None:
    assert facts(shared.conninfo).identity != facts(server.conninfo).identity


@pytest.mark.usefixtures("unblocked")
def test_names_that_would_command_a_terminal_are_harmless(shared: Server) -> None:
    name = "a\x1b[31m\rb\x9b2J"
    with shared.admin() as admin:
        admin.execute(f'CREATE ROLE "{name}" LOGIN SUPERUSER')
        admin.execute(f'CREATE DATABASE "{name}"')
    with database(entry(make_conninfo(shared.conninfo, user=name, dbname=name))) as alias:
        ran = Ran("-v", "2", database=[alias])
    assert "a [31m b 2J" in ran.out
    assert all(char.isprintable() for char in ran.out.replace("\n", ""))


@pytest.mark.usefixtures("unblocked")
@pytest.mark.parametrize("part", ["USER", "NAME", "HOST"])
def test_settings_that_would_command_a_terminal_are_harmless(part: str) -> None:
    given = {"NAME": "x", "HOST": "127.0.0.1", "PORT": "1", part: "a\x1b[31m\rb"}
    with database({"ENGINE": OURS, **given}) as alias:
        ran = Ran(database=[alias])
    assert all(char.isprintable() for char in ran.out.replace("\n", ""))
