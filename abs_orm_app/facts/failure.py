"""Why a database could not be used: the cause in one sentence without secrets, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from django.core.exceptions import ImproperlyConfigured

# What PostgreSQL, libpq and PgBouncer say -> what to do. The first that matches counts.
_HINTS = (
    (  # Before all others: it has the name of an option, such as statement_timeout.
        r"(?:invalid|unrecognized) .*(?:option|parameter|value|number|argument)"
        r"|bad value for|definition of service",
        "Correct this option of the database's settings.",
    ),
    (
        r"Connection refused|No such file or directory",
        "Is PostgreSQL running there? Start it, or correct the host and port.",
    ),
    (
        r"resolve host|could not translate host name|not known",
        "Correct the host; it must be a name that this machine can look up.",
    ),
    (r"authentication failed|no password supplied", "Correct the user or the password."),
    (
        r'role ".*" does not exist|no such user',
        "Correct the user (or assume_role), or create the role on the server.",
    ),
    (
        r"permission denied to set role",
        "Correct assume_role, or grant that role to the user.",
    ),
    (
        r'database ".*" does not exist|no such database',
        "Correct the database name, or create the database.",
    ),
    (
        r"too many clients|connection slots|too many connections|no more connections allowed",
        "Lower DB_POOL_SIZE + DB_MAX_OVERFLOW or the number of processes, or raise the limit.",
    ),
    (
        r"pg_hba\.conf",
        "The server does not accept this user, database, address and TLS together: "
        "see its pg_hba.conf.",
    ),
    (
        r"SSL|sslmode|certificate",
        "Compare sslmode and sslrootcert with what the server offers.",
    ),
    (
        r"hot standby mode|session is (?:not )?read-only",
        "Correct target_session_attrs, or name a host that is as it demands.",
    ),
    (
        r"starting up|shutting down|recovery|not yet accepting",
        "Wait until the server is ready, and try again.",
    ),
    (
        r"query_wait_timeout",
        "PgBouncer had no server connection to give: see what holds them (SHOW SERVERS on its "
        "console, pg_stat_activity on the server), or raise default_pool_size.",
    ),
    (
        r"unsupported startup parameter",
        "PgBouncer does not know what the options set: `manage.py pgbouncer_ini` has it done.",
    ),
    (
        r"server_login_retry",
        "PgBouncer cannot connect to its server: is that running, and does it accept PgBouncer?",
    ),
    (
        r"due to .*timeout",
        "Find out what holds the server up, or raise that timeout of the session.",
    ),
    (
        r"time(?:d )?out|no answer|Network is unreachable|No route to host",
        "Is the server's machine up, and is the port open in the firewalls between?",
    ),
)
_HINT_ON_SETTINGS = "Correct the settings of this database."
_HINT_ON_SERVER = "Look into the server's log: it may say more than a client is told."


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something did not work; both texts are fit to be shown."""

    cause: str
    hint: str


def explain(error: BaseException, secrets: Iterable[str] = ()) -> Failure:
    """Put an error in one sentence, without the secrets in any spelling, and add what to do."""
    # Without the secrets first: what follows might change their spelling, or cut one in two.
    cause = _sentence(scrub(str(error), secrets) or type(error).__name__)
    for pattern, hint in _HINTS:
        if re.search(pattern, cause):
            return Failure(cause=cause, hint=hint)
    ours = isinstance(error, ImproperlyConfigured | LookupError | TypeError | ValueError)
    return Failure(cause=cause, hint=_HINT_ON_SETTINGS if ours else _HINT_ON_SERVER)


def _sentence(text: str) -> str:
    """The first line, with a full stop."""
    line = text.strip().partition("\n")[0].rstrip(".")
    line = re.sub(r"^connection (?:failed|is bad): ", "", line)
    # A role or a host may be named so that a terminal would obey it.
    printable = "".join(char if char.isprintable() else " " for char in line)
    return f"{' '.join(printable.split())}."


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Replace each secret by ***: as it is, URL-encoded, or escaped by Python or libpq."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if secret:
            text = re.sub("".join(map(_spellings, secret)), "***", text)
    return text


def _spellings(char: str) -> str:
    """A pattern for the ways to write a character."""
    encoded = "".join(f"%{byte:02X}" for byte in char.encode(errors="surrogateescape"))
    spellings = [re.escape(form) for form in (f"\\{char}", repr(char)[1:-1], char)]
    # The longest first: a percent sign is also what an encoded one begins with.
    return f"(?:(?i:{encoded})|{'|'.join(spellings)}{'|[+]' * (char == ' ')})"
