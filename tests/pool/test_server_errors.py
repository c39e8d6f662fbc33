"""The table of server errors: each kind is recognised, and a name is not taken for a message."""

from __future__ import annotations

import os
import pwd
import socket
import sys
import threading

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from abs_orm_app.pool.server_errors import (
    AUTHENTICATION_FAILED,
    FULL,
    REFUSED,
    SERVER_ERRORS,
    UNKNOWN,
    UNREACHABLE,
    classify,
    is_about_credentials,
)
from tests.support.pools import opened, ours
from tests.support.processes import run
from tests.support.servers import Server

HBA = """
local all postgres trust
local all app      trust
local all peer     peer
local all all      scram-sha-256
"""

pytestmark = pytest.mark.server(
    {"max_connections": "6", "superuser_reserved_connections": "3"}, hba=HBA, roles=["app LOGIN"]
)

# One real text for each row of the table, in its order.
TEXTS = (
    "DB_PASSWORD_FILE cannot be read: No such file or directory.",
    "connection is bad: could not look up local user ID 0: Too many open files",
    "can't start new thread",
    "the configure function of pool 'default' failed: ValueError: no such table",
    'connection failed: FATAL:  Peer authentication failed for user "app"',
    'connection failed: FATAL:  password authentication failed for user "app"',
    "connection failed: fe_sendauth: no password supplied",
    'connection is bad: service file "/etc/pg_service.conf" not found',
    'connection failed: FATAL:  invalid value for parameter "statement_timeout": "x"',
    "connection failed: FATAL:  unsupported startup parameter: options",
    'connection is bad: weak sslmode "require" may not be used with sslrootcert=system',
    "connection failed: channel binding required, but SSL not in use",
    'connection failed: root certificate file "/nowhere/ca.crt" does not exist',
    "connection failed: FATAL:  connection requires a valid client certificate",
    'connection to server on socket "/tmp/.s.PGSQL.1" failed: No such file or directory',
    'connection to server on socket "/tmp/.s.PGSQL.1" failed: Permission denied',
    'connection failed: FATAL:  could not access file "x": No such file or directory',
    'connection to server at "127.0.0.1", port 1 failed: Connection refused',
    "failed to resolve host 'db': [Errno -2] Name or service not known",
    "failed to resolve host 'db': [Errno -3] Temporary failure in name resolution",
    'connection failed: FATAL:  role "x" does not exist',
    'connection failed: FATAL:  role "x" is not permitted to log in',
    'permission denied to set role "owner"',
    'connection failed: FATAL:  database "shop" does not exist',
    'connection failed: FATAL:  permission denied for database "shop"',
    "connection failed: FATAL:  sorry, too many clients already",
    'connection failed: FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "x"',
    "connection failed: received invalid response to SSL negotiation: H",
    "connection failed: server does not support SSL, but SSL was required",
    "server closed the connection unexpectedly",
    "connection failed: SSL error: bad record type",
    "connection failed: session is read-only",
    "connection failed: server is not in hot standby mode",
    "connection failed: FATAL:  the database system is starting up",
    "query_wait_timeout",
    "connection failed: FATAL:  server login has been failing, (server_login_retry)",
    "canceling statement due to lock timeout",
    "127.0.0.1:5432 accepts connections, but does not answer",
    "connection timeout expired: 127.0.0.1:5432 answers now",
    "connection timeout expired",
)


def refused(conninfo: str, timeout: int = 5) -> psycopg.OperationalError:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(conninfo, connect_timeout=timeout).close()
    return caught.value


def test_each_row_of_the_table_matches_its_own_text() -> None:
    assert [classify(text) for text in TEXTS] == list(SERVER_ERRORS)


def test_an_unknown_error_is_worth_another_try() -> None:
    kind = classify(psycopg.OperationalError("eine Meldung in einer anderen Sprache"))
    assert kind is UNKNOWN
    assert not kind.permanent


@pytest.mark.parametrize("name", ["connection slots", "starting up", "invalid option", "SSL"])
def test_a_role_that_is_named_like_another_error_is_not_taken_for_it(
    shared: Server, name: str
) -> None:
    error = refused(f"{shared.conninfo} user='{name}' password=x")
    assert name in str(error)
    assert classify(error) is AUTHENTICATION_FAILED


def test_the_message_about_a_full_server_does_not_say_that_it_is_down(shared: Server) -> None:
    conninfo = f"{shared.conninfo} user=app"
    with opened(ours, conninfo, min_size=3, max_size=4) as pool:
        held = [pool.getconn() for _ in range(3)]
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=3)
        for connection in held:
            pool.putconn(connection)
    text = str(caught.value)
    assert FULL in text
    assert "cannot be reached" not in text
    assert "DB_POOL_SIZE" in text
    assert "--explain too-many-clients" in text


def test_credentials_that_became_wrong_while_connections_are_in_use_are_refused(
    server: Server,
) -> None:
    with opened(ours, f"{server.conninfo} user=app", min_size=1, max_size=2) as pool:
        held = pool.getconn()
        with server.admin() as admin:
            admin.execute("ALTER ROLE app NOLOGIN")
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=3)
        pool.putconn(held)
    assert REFUSED in str(caught.value)
    assert "LOGIN" in str(caught.value)
    assert "--explain wrong-credentials" in str(caught.value)


def test_the_message_about_a_port_that_accepts_and_says_nothing_asks_what_listens() -> None:
    """Python's own HTTP servers wait for the end of a line, which PostgreSQL's protocol has not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        error = refused(f"host=127.0.0.1 port={port} user=x dbname=x", timeout=2)
    assert "that PostgreSQL listens there." in classify(error).hint


def test_the_message_about_a_port_that_speaks_http_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):  # libpq asks for TLS first, and may try again without
                try:
                    client, _address = listener.accept()
                except OSError:
                    return
                with client:
                    client.recv(1024)
                    client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        port = listener.getsockname()[1]
        error = refused(f"host=127.0.0.1 port={port} user=x dbname=x")
        listener.shutdown(socket.SHUT_RDWR)
    assert "not PostgreSQL" in classify(error).hint


def test_a_role_with_another_name_than_this_account_is_told_to_use_tcp(shared: Server) -> None:
    """The password, if there is one, is not asked for."""
    error = refused(f"{shared.conninfo} user=peer password=x")
    assert "Peer authentication failed" in str(error)
    assert "password" not in classify(error).hint
    assert "DB_HOST=127.0.0.1" in classify(error).hint
    assert is_about_credentials(error)  # so it is retried less and less often


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another account")
def test_a_socket_that_this_account_may_not_use_is_told_so(server: Server) -> None:
    server.socket_dir.chmod(0o700)
    done = run(server, connect_as_another_account, server.conninfo)
    assert "Permission denied" in done.output, done.errors
    assert "unix_socket_permissions" in classify(done.output).hint


def connect_as_another_account(conninfo: str) -> None:
    os.setgroups([])
    os.setuid(pwd.getpwnam("daemon").pw_uid)
    sys.stdout.write(str(refused(conninfo)))


def test_a_database_that_takes_no_connections_is_a_known_fault(server: Server) -> None:
    """As while it is being dropped, or restored from a template."""
    with server.admin() as admin:
        admin.execute("CREATE DATABASE shop ALLOW_CONNECTIONS false")
    error = refused(f"{server.conninfo} dbname=shop")
    assert "not currently accepting connections" in str(error)
    kind = classify(error)
    assert kind is not UNKNOWN
    assert kind.problem != UNREACHABLE


def test_a_file_that_a_running_server_misses_does_not_ask_whether_it_runs(server: Server) -> None:
    with server.admin() as admin:
        admin.execute("ALTER ROLE app SET session_preload_libraries = 'no_such_library'")
    error = refused(f"{server.conninfo} user=app")
    assert "could not access file" in str(error)
    kind = classify(error)
    assert "running" not in kind.hint
    assert kind.problem != UNREACHABLE
