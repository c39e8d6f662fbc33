"""The errors that PostgreSQL, libpq and PgBouncer raise: what each one means, and what to do.

One table for all code that reads such a text: the pool (can another attempt help?), its messages
and the reports (the hint). libpq gives no SQLSTATE for a failed connection, because there is no
PGresult to carry one, so the text must do. The patterns match the English texts in the sources of
PostgreSQL and libpq, of PgBouncer if they differ, and of the C libraries for host names. Texts in
another language (`lc_messages`) are UNKNOWN: the pool retries until its timeout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNREACHABLE = "the server cannot be reached"
REFUSED = "the server refuses the connection"
FULL = "the server accepts no more connections"
NOT_READY = "the server is not ready"
IMPOSSIBLE = "a connection cannot be made"


@dataclass(frozen=True, kw_only=True)
class ServerError:
    """One kind of error."""

    pattern: str  # a regular expression; names in double quotes are empty in what it searches
    hint: str  # what to do: whole sentences
    problem: str = UNREACHABLE  # what it means for a client that waits for a connection
    entry: str = "server-down"  # its entry in docs/troubleshooting.md
    permanent: bool = False  # waiting cannot fix it: only a person can
    # A permanent one that passes by itself where a connection has worked before: the name of a
    # container that restarts, a database that is being restored.
    passes_after_connect: bool = False


def _refusal(
    pattern: str, hint: str, *, problem: str = REFUSED, passes_after_connect: bool = False
) -> ServerError:
    """An error that lasts until somebody changes the address, the credentials or the server."""
    return ServerError(
        pattern=pattern,
        hint=hint,
        problem=problem,
        entry="wrong-credentials",
        permanent=True,
        passes_after_connect=passes_after_connect,
    )


NO_CREDENTIALS = ServerError(  # raised on this side, when the password is read
    pattern=r"^DB_PASSWORD_(?:FILE|PROVIDER) ",
    hint="Correct that variable, or what it names.",
    problem="the password cannot be read",
    entry="wrong-credentials",
)
AUTHENTICATION_FAILED = _refusal(
    r"authentication failed",  # 28P01: password, SCRAM, LDAP, certificate
    "Correct the user or the password.",
)
NO_PASSWORD = _refusal(
    r"no password supplied",
    "Set the password of this user.",
)
NO_SOCKET = ServerError(
    pattern=r"on socket .*failed: (?:No such file or directory|Connection refused)",
    hint="No server listens on this Unix socket: start PostgreSQL on this machine, or set the host"
    " of another one (DB_HOST, or postgresql://USER@HOST/NAME).",
)
WRONG_SETTINGS = ServerError(  # raised on this side, before the server was asked
    pattern=r"(?!)",
    hint="Correct the settings of this database.",
    problem=IMPOSSIBLE,
    entry="wrong-settings",
    permanent=True,
)
UNKNOWN = ServerError(
    pattern=r"",
    hint="Look into the server's log: it may say more than a client is told.",
)

# The first match counts, so narrow patterns stand above wide ones.
SERVER_ERRORS = (
    NO_CREDENTIALS,
    AUTHENTICATION_FAILED,
    NO_PASSWORD,
    _refusal(
        r"(?:invalid|unrecognized) .*(?:option|parameter|value|number|argument)"
        r"|bad value for|definition of service",
        "Correct this option of the database's settings.",
        problem=IMPOSSIBLE,
    ),
    _refusal(
        r"unsupported startup parameter",
        "PgBouncer does not accept an option that is set: `manage.py pgbouncer_ini` writes a"
        " configuration that sets it.",
    ),
    NO_SOCKET,
    ServerError(
        pattern=r"Connection refused|No such file or directory",
        hint="Is PostgreSQL running there? Start it, or correct the host and port.",
    ),
    _refusal(
        r"(?:Name or service|(?:node|host)name nor servname).*not known"  # EAI_NONAME
        r"|Name does not resolve"  # the same, of musl
        r"|No address associated with hostname",  # EAI_NODATA
        "Correct the host; it must be a name that this machine can resolve.",
        problem=UNREACHABLE,
        passes_after_connect=True,
    ),
    ServerError(  # EAI_AGAIN, and what psycopg says of all of them
        pattern=r"resolve host|could not translate host name",
        hint="Correct the host; it must be a name that this machine can resolve.",
    ),
    _refusal(
        r'role ".*" does not exist|no such user',  # 28000; PgBouncer
        "Correct the user (or assume_role), or create the role on the server.",
    ),
    _refusal(
        r'role ".*" is not permitted to log in',
        "Correct the user, or give the role the attribute LOGIN.",
    ),
    ServerError(
        pattern=r"permission denied to set role",
        hint="Correct assume_role, or grant that role to the user.",
        problem=REFUSED,
    ),
    _refusal(
        r'database ".*" does not exist|no such database',  # 3D000; PgBouncer
        "Correct the database name, or create the database.",
        passes_after_connect=True,
    ),
    _refusal(
        r"permission denied for database",  # 42501
        "Correct the database name, or grant CONNECT on the database to the user.",
    ),
    ServerError(
        pattern=r"too many clients|connection slots|too many connections"
        r"|no more connections allowed",
        hint="Lower DB_POOL_SIZE + DB_MAX_OVERFLOW or the number of processes, or raise the limit.",
        problem=FULL,
        entry="too-many-clients",
    ),
    _refusal(
        r"no pg_hba\.conf entry|pg_hba\.conf rejects connection",  # 28000
        "The server does not accept this combination of user, database, address and TLS: see its"
        " pg_hba.conf.",
        passes_after_connect=True,
    ),
    ServerError(
        pattern=r"received invalid response to (?:SSL|GSSAPI) negotiation"
        r"|expected authentication request from server, but received",
        hint="What answers at this host and port is not PostgreSQL: correct them.",
    ),
    _refusal(
        r"server does not support SSL"
        r"|certificate verify failed"
        r"|root certificate file .* does not exist"
        r"|server certificate for .* does not match host name",
        "Compare sslmode and sslrootcert with what the server offers.",
    ),
    ServerError(
        pattern=r"closed (?:the connection )?unexpectedly|EOF detected|Connection reset",
        hint="The server or the network ended the connection: the server's log may say why.",
    ),
    ServerError(
        pattern=r"SSL|sslmode|certificate",
        hint="Compare sslmode and sslrootcert with what the server offers.",
    ),
    ServerError(
        pattern=r"hot standby mode|session is (?:not )?read-only",
        hint="Correct target_session_attrs, or set a host that meets it.",
        problem=REFUSED,
    ),
    ServerError(
        pattern=r"starting up|shutting down|recovery|not yet accepting",
        hint="Wait until the server is ready, and try again.",
        problem=NOT_READY,
    ),
    ServerError(
        pattern=r"query_wait_timeout",
        hint="PgBouncer had no free server connection: see what holds them (SHOW SERVERS on its"
        " console, pg_stat_activity on the server), or raise default_pool_size.",
        problem=FULL,
        entry="too-many-clients",
    ),
    ServerError(
        pattern=r"server_login_retry",
        hint="PgBouncer cannot connect to its server: check that the server runs and accepts"
        " PgBouncer.",
    ),
    ServerError(
        pattern=r"due to .*timeout",
        hint="Find out what delays the server, or raise that timeout of the session.",
    ),
    ServerError(
        pattern=r"time(?:d )?out|no answer|Network is unreachable|No route to host",
        hint="Is the server's machine up, do the firewalls in between let this port through, and"
        " is it PostgreSQL that listens there?",
    ),
)

_NAME = re.compile(r'"[^"\n]*"')


def classify(error: BaseException | str) -> ServerError:
    """Find the kind of an error by its first line; UNKNOWN if no pattern matches."""
    line = str(error).strip().partition("\n")[0]
    # A role, a database or a parameter may have a name that looks like part of another message.
    text = _NAME.sub('""', line)
    return next((kind for kind in SERVER_ERRORS if re.search(kind.pattern, text)), UNKNOWN)
