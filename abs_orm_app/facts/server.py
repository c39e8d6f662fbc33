"""Reads facts about a PostgreSQL server, as one role: limits, timeouts, number of sessions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abs_orm_app.config.application_name import OF_PROCESS
from abs_orm_app.config.texts import printable
from abs_orm_app.facts.pooler import PoolerFacts

# One round trip, and only what a role without privileges may read. Such a role sees the sessions of
# other roles, but not their type; hence the coalesce.
# The postmaster's start time and port identify a server, over TCP and sockets alike. The system
# identifier does not: a standby has the same one as its primary.
_QUERY = """
SELECT json_build_object(
    'identity', extract(epoch FROM pg_postmaster_start_time()) || ' ' || current_setting('port'),
    'version', current_setting('server_version'),
    'database', d.datname,
    'role', r.rolname,
    'superuser', r.rolsuper,
    'tls_version', (SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()),
    'tls_cipher', (SELECT cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()),
    'in_recovery', pg_is_in_recovery(),
    'read_only', current_setting('transaction_read_only')::bool,
    'max_connections', current_setting('max_connections')::int,
    'superuser_reserved', current_setting('superuser_reserved_connections')::int,
    'reserved', coalesce(current_setting('reserved_connections', true), '0')::int,
    'may_use_reserved', coalesce(
        pg_has_role(r.oid, to_regrole('pg_use_reserved_connections')::oid, 'usage'), false),
    'role_limit', nullif(r.rolconnlimit, -1),
    'database_limit', nullif(d.datconnlimit, -1),
    'used', a.used,
    'used_by_role', a.used_by_role,
    'used_in_database', a.used_in_database,
    'used_by_project', a.used_by_project,
    'settings', (
        SELECT json_object_agg(name, CASE unit WHEN 'ms' THEN setting::float / 1000
                                               ELSE setting::float END)
        FROM pg_settings
        WHERE name IN (
            'statement_timeout', 'lock_timeout', 'transaction_timeout',
            'idle_in_transaction_session_timeout', 'idle_session_timeout',
            'tcp_keepalives_idle', 'tcp_keepalives_interval', 'tcp_keepalives_count',
            'tcp_user_timeout'))
)::text
FROM pg_roles r, pg_database d, (
    SELECT count(*) AS used,
           count(*) FILTER (WHERE usename = session_user) AS used_by_role,
           count(*) FILTER (WHERE datname = current_database()) AS used_in_database,
           count(*) FILTER (WHERE usename = session_user AND datname = current_database()
                              AND application_name <> ''
                              AND regexp_replace(application_name, %(of_process)s, '')
                                  = regexp_replace(current_setting('application_name'),
                                                   %(of_process)s, '')) AS used_by_project
    FROM pg_stat_activity
    WHERE datid IS NOT NULL AND usesysid IS NOT NULL AND pid <> pg_backend_pid()
      AND coalesce(backend_type, 'client backend') = 'client backend'
) a
WHERE r.rolname = session_user AND d.datname = current_database()
"""


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """A server as one role sees it over one connection. PostgreSQL 13 or newer."""

    identity: str  # equal for two aliases if, and only if, they are on the same server
    version: str
    address: str  # as the client reached it
    database: str
    role: str  # that logged in
    superuser: bool

    tls: bool  # of the client's connection
    tls_version: str | None
    tls_cipher: str | None
    in_recovery: bool  # a standby, which accepts no writes
    read_only: bool  # the default for transactions

    max_connections: int
    superuser_reserved: int
    reserved: int  # for members of pg_use_reserved_connections (PostgreSQL 16)
    may_use_reserved: bool
    role_limit: int | None  # CONNECTION LIMIT of the role; None: no limit
    database_limit: int | None

    # Current sessions of clients, without this one.
    used: int
    used_by_role: int
    used_in_database: int
    used_by_project: int  # of this role, database and application name

    # The values of this session by PostgreSQL's names; times in seconds, 0 is off.
    # Names that this version of the server does not have are left out.
    settings: Mapping[str, float]

    pooler: PoolerFacts | None = None  # None: there is none


def read_server(connection: Any) -> ServerFacts:
    """Query the server, in one round trip, over an open connection.

    Raises the driver's `Error` if the server is older than PostgreSQL 13.
    """
    facts = json.loads(connection.execute(_QUERY, {"of_process": OF_PROCESS}).fetchone()[0])
    facts |= {name: printable(facts[name]) for name in ("version", "database", "role")}
    tls = bool(connection.pgconn.ssl_in_use)
    if not tls:
        # A pooler may use TLS to the server; that says nothing about the client's connection.
        facts |= {"tls_version": None, "tls_cipher": None}
    return ServerFacts(address=_address(connection), tls=tls, **facts)


def _address(connection: Any) -> str:
    """Return HOST:PORT, or the path of the Unix socket."""
    info = connection.info
    host = printable(info.host)
    if host.startswith(("/", "@")):
        return f"{host}/.s.PGSQL.{info.port}"
    return f"{host}:{info.port}"
