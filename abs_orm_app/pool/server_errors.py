"""The errors that PostgreSQL, libpq and PgBouncer raise: what each one means, and what to do.

One table for all code that reads such a text: the pool (can another attempt help?), its messages
and the reports (the hint). libpq gives no SQLSTATE for a failed connection, because there is no
PGresult to carry one, so only the text is left. The patterns match the English texts in the sources
of PostgreSQL and libpq, of PgBouncer where it differs, and of the C libraries for host names. Texts
in another language (`lc_messages`) are UNKNOWN: the pool retries until its timeout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import psycopg

UNREACHABLE = "the server cannot be reached"
REFUSED = "the server refuses the connection"
FULL = "the server accepts no more connections"
NOT_READY = "the server is not ready"
IMPOSSIBLE = "a connection cannot be made"
HUNG = "the server does not answer"
OPENING = "no connection could be opened in time"
READ_ONLY = "the server is a standby, so writes fail"
SHORT = "this process is out of resources"
# The short names of these causes, in metrics and for machines.
NAMES = {
    UNREACHABLE: "unreachable",
    REFUSED: "refused",
    FULL: "full",
    NOT_READY: "not ready",
    IMPOSSIBLE: "settings",
    HUNG: "hung",
    OPENING: "opening",
    READ_ONLY: "read-only",
    SHORT: "resources",
}
SAYS_NOTHING = "accepts connections, but does not answer"  # of an address that was probed


@dataclass(frozen=True, kw_only=True)
class ServerError:
    """One kind of error."""

    pattern: str  # a regular expression; the searched text has "" for each double-quoted name
    hint: str  # what to do: whole sentences
    problem: str = UNREACHABLE  # what it means for a client that waits for a connection
    entry: str = "server-down"  # its entry in docs/troubleshooting.md
    permanent: bool = False  # waiting cannot fix it: only a person can
    # A permanent error that passes by itself if a connection has worked before: the name of a
    # container that restarts, a database that is being restored.
    passes_after_connect: bool = False

    @property
    def name(self) -> str:
        return NAMES.get(self.problem, "check")


def _refusal(
    pattern: str, hint: str, *, problem: str = REFUSED, passes_after_connect: bool = False
) -> ServerError:
    """An error that lasts until a person changes the address, the credentials or the server."""
    return ServerError(
        pattern=pattern,
        hint=hint,
        problem=problem,
        entry="wrong-credentials",
        permanent=True,
        passes_after_connect=passes_after_connect,
    )


NO_CREDENTIALS = ServerError(  # raised by this process, when it reads the password
    pattern=r"^DB_PASSWORD_(?:FILE|PROVIDER) ",
    hint="Correct that variable, or what it names.",
    problem=IMPOSSIBLE,
    entry="wrong-credentials",
)
AUTHENTICATION_FAILED = _refusal(
    r"authentication failed",  # 28P01: password, SCRAM, LDAP, certificate
    "Correct the user or the password.",
)
OTHER_ACCOUNT = _refusal(
    r"(?:Peer|Ident) authentication failed",  # 28P01, too, but no password is asked for
    "Here the server accepts only the role that is named like the account of this process: connect"
    " over TCP (DB_HOST=127.0.0.1), or change its pg_hba.conf.",
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
WRONG_SETTINGS = ServerError(  # raised by this process, before the server is asked
    pattern=r"(?!)",
    hint="Correct the settings of this database.",
    problem=IMPOSSIBLE,
    entry="wrong-settings",
    permanent=True,
)
HANGS = ServerError(
    pattern=SAYS_NOTHING,
    hint="Check its machine: is PostgreSQL suspended, or is it short of memory or disk?",
    problem=HUNG,
    entry="hung-server",
)
CHECK_REFUSES = ServerError(  # the project's own function, which may raise anything
    pattern=r"(?!)",
    hint="Correct that function (OPTIONS['pool']['check']), or what it asks for.",
    problem="the check of the project refuses new connections",
    entry="wrong-settings",
)
UNKNOWN = ServerError(
    pattern=r"",
    hint="Look at the server's log: it may say more than the client is told.",
)

# The first match counts, so narrow patterns come before wide ones.
SERVER_ERRORS = (
    NO_CREDENTIALS,
    ServerError(
        pattern=r"^(?!.*FATAL).*Too many open files",
        hint="This process has no file descriptors left: find out what keeps them open, or raise"
        " its limit (ulimit -n).",
        problem=SHORT,
        entry="out-of-resources",
    ),
    ServerError(
        pattern=r"can't start new thread|^a thread that should have opened|^MemoryError"
        r"|^(?:connection (?:failed|is bad): )?out of memory",
        hint="This process can start no thread, or has no memory left: raise its limits, and"
        " those of its container.",
        problem=SHORT,
        entry="out-of-resources",
    ),
    _refusal(
        r"^the configure function of pool ",
        "Correct that function.",
        problem=IMPOSSIBLE,
    ),
    OTHER_ACCOUNT,
    AUTHENTICATION_FAILED,
    NO_PASSWORD,
    _refusal(
        r"definition of service|service file",
        "Correct the service name (service, PGSERVICE), or the file that it is looked up in"
        " (PGSERVICEFILE, ~/.pg_service.conf).",
        problem=IMPOSSIBLE,
        passes_after_connect=True,  # while the file is replaced
    ),
    _refusal(
        r"(?:invalid|unrecognized) .*(?:option|parameter|value|number|argument)"
        r"|bad value for|could not parse network address|Servname not supported",
        "Correct this option of the database's settings.",
        problem=IMPOSSIBLE,
    ),
    _refusal(
        r"unsupported startup parameter",
        "PgBouncer does not accept an option that is set: `manage.py pgbouncer_ini` writes a"
        " configuration that sets it.",
    ),
    _refusal(
        r"weak sslmode|invalid SSL protocol version range",
        "Correct sslmode, sslrootcert or the TLS versions of the settings: they contradict each"
        " other.",
        problem=IMPOSSIBLE,
    ),
    _refusal(
        r"channel binding|authentication method requirement|GSSAPI encryption required",
        "Compare channel_binding, require_auth and gssencmode with what the server offers.",
        passes_after_connect=True,
    ),
    _refusal(
        r"(?:private key|certificate) file",
        "This process cannot use that file: provide it, or correct sslrootcert, sslcert or sslkey.",
        problem=IMPOSSIBLE,
        passes_after_connect=True,  # while certificates are rotated
    ),
    _refusal(
        r"valid client certificate|alert (?:certificate|unknown ca|bad certificate)",
        "Compare sslcert, sslkey and sslrootcert with what the server wants, and see when the"
        " certificates expire.",
        passes_after_connect=True,
    ),
    NO_SOCKET,
    _refusal(
        r"on socket .*failed: Permission denied",
        "Let the account of this process use the socket (unix_socket_permissions, the permissions"
        " of its directory), or connect over TCP (DB_HOST=127.0.0.1).",
        problem=UNREACHABLE,
        passes_after_connect=True,
    ),
    _refusal(
        r"could not access file|could not load library",
        "The server lacks a file that this database or role names, such as a library in"
        " session_preload_libraries.",
        passes_after_connect=True,
    ),
    ServerError(
        pattern=r"Connection refused|No such file or directory",
        hint="Start PostgreSQL there, or correct the host and port.",
    ),
    _refusal(
        r"(?:Name or service|(?:node|host)name nor servname).*not known"  # EAI_NONAME
        r"|Name does not resolve"  # the same in musl
        r"|No address associated with hostname|Name has no usable address"  # EAI_NODATA
        r"|'idna' codec",  # Python's, for a name that is too long
        "Correct the host; it must be a name that this machine can resolve.",
        problem=UNREACHABLE,
        passes_after_connect=True,
    ),
    ServerError(  # EAI_AGAIN, and psycopg's text for all of them
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
        r'database ".*" does not exist|no such database'  # 3D000; PgBouncer
        r"|not currently accepting connections",  # 55000
        "Correct the database name, or create the database, or let it accept connections.",
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
        r"|server certificate for .* does not match host name"
        r"|(?:unsupported|alert) protocol|no protocols available|handshake failure",
        "Compare sslmode and sslrootcert with what the server offers.",
        passes_after_connect=True,
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
        pattern=r"server is in hot standby mode|session is read-only",
        hint="Promote a standby, or name the primary's host, too.",
        problem=READ_ONLY,
        entry="writes-go-to-a-standby",
    ),
    ServerError(
        pattern=r"hot standby mode|session is not read-only",
        hint="Correct target_session_attrs, or set a host that meets it.",
        problem=REFUSED,
    ),
    ServerError(
        pattern=r"starting up|shutting down|recovery|not yet accepting|server is not ready",
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
    HANGS,
    ServerError(
        pattern="answers now",
        hint="Look at the load of its machine, or raise connect_timeout.",
        problem=OPENING,
        entry="hung-server",
    ),
    ServerError(
        pattern=r"time(?:d )?out|no answer|Network is unreachable|No route to host",
        hint="Check that the server's machine is up, that the firewalls in between let this port"
        " through, and that PostgreSQL listens there.",
    ),
)

_NAME = re.compile(r'"[^"\n]*"')


def classify(error: BaseException | str) -> ServerError:
    """Find the kind of an error by its first line; UNKNOWN if no pattern matches."""
    line = (str(error).strip() or type(error).__name__).partition("\n")[0]
    # A role, a database or a parameter may have a name that looks like part of another message.
    text = _NAME.sub('""', line)
    return next((kind for kind in SERVER_ERRORS if re.search(kind.pattern, text)), UNKNOWN)


# A line about the attempt at one address, from libpq, the server or psycopg.
_ADDRESS = re.compile(r"failed:|FATAL:|^- host:")


def belongs_to_session(error: BaseException) -> bool:
    """True for an error of a statement that would not fail in a new session.

    Something that the session has cached (a plan, the type of a variable, a prepared statement) is
    older than a schema change, or gone. The tests use what PostgreSQL does not translate: the place
    in its source that raises the error, names, and internal errors.
    """
    if not isinstance(error, psycopg.Error):
        return False
    diag = error.diag
    text = diag.message_primary or ""
    match error.sqlstate:
        case "0A000":  # cached plan must not change result type
            return diag.source_function == "RevalidateCachedQuery"
        case "42804":  # type of parameter ... does not match that when preparing the plan
            return (diag.source_file or "").endswith("pl_exec.c")
        case "26000" | "42P05":  # psycopg's own prepared statement is gone, or is there already
            return '"_pg3_' in text
        case "XX000":
            return text.startswith("cache lookup failed for ")
    return False


@dataclass(frozen=True)
class Fault:
    """A failure to connect: the last error, and when the first and last happened (`monotonic`).

    `retry_after`: seconds until it is tried again while a request waits.
    """

    error: Exception
    permanent: bool
    since: float
    at: float
    retry_after: float
    refused_by_check: bool = False

    @property
    def kind(self) -> ServerError:
        if self.refused_by_check:
            return CHECK_REFUSES
        kind = classify(self.error)
        return WRONG_SETTINGS if kind is UNKNOWN and self.permanent else kind


def is_about_credentials(error: Exception) -> bool:
    """True if the server did not accept the password, or the account."""
    return classify(error) in (AUTHENTICATION_FAILED, OTHER_ACCOUNT)


def is_permanent(error: Exception, *, has_connected: bool = False) -> bool:
    """True for a fault that only a person can fix, such as a wrong password; False if it may pass.

    has_connected: a connection has worked before. Then more faults are temporary: the name of a
    container that restarts, a line of pg_hba.conf on a server that takes over.

    A process that is out of threads, files or memory may get some again. Any error other than an
    `OperationalError` did not come from the server or the network: it is a parameter that libpq
    does not know, or an error in the project's own code. Another attempt fixes neither.
    """
    if isinstance(error, RuntimeError | OSError | MemoryError):
        return False
    if not isinstance(error, psycopg.OperationalError):
        return True
    # Each line is about one address; if one of these may recover, another attempt can help.
    causes = [line for line in str(error).splitlines() if _ADDRESS.search(line)]
    kinds = [classify(line) for line in causes or [str(error)]]
    return all(
        kind.permanent and not (has_connected and kind.passes_after_connect) for kind in kinds
    )


def again(error: Exception) -> Exception:
    """Return a copy to raise in another thread: one instance would collect all their tracebacks.

    An exception that cannot be copied becomes a `psycopg.OperationalError` with its text.
    """
    kind = type(error)
    try:
        copy = kind.__new__(kind, *error.args)
        copy.__dict__.update(error.__dict__)
        faithful = str(copy) == str(error)
    except Exception:  # its class may do anything
        faithful = False
    if not faithful:
        copy = psycopg.OperationalError(f"{kind.__name__}: {error}")
    copy.__cause__ = (error.__cause__ if faithful else None) or error
    return copy


def without_frames(error: BaseException) -> Exception:
    """Return the error without its tracebacks, whose frames would keep a socket alive."""
    chain: list[BaseException | None] = [error]
    for each in chain:
        if each is not None and each not in chain[: chain.index(each)]:
            each.__traceback__ = None
            chain += [each.__cause__, each.__context__]
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"{type(error).__name__} in a thread that opens connections")
