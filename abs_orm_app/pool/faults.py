"""Why a connection could not be made: the fault as a fact, and whether it is worth another try."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psycopg

# libpq gives no SQLSTATE for a failed connection (no PGresult to carry one), only the text.
# These are the texts of PostgreSQL's and libpq's sources, PgBouncer's where they differ. A server
# with other words (lc_messages) is retried until the timeout, and its message is then the cause.
_PERMANENT = re.compile(
    r"""
      authentication\ failed            # 28P01: password, SCRAM, LDAP, certificate
    | no\ password\ supplied
    | role\ ".*"\ does\ not\ exist      # 28000
    | role\ ".*"\ is\ not\ permitted\ to\ log\ in
    | no\ such\ user                    # PgBouncer
    | database\ ".*"\ does\ not\ exist  # 3D000
    | no\ such\ database                # PgBouncer
    | permission\ denied\ for\ database # 42501
    | no\ pg_hba\.conf\ entry           # 28000
    | pg_hba\.conf\ rejects\ connection
    | server\ does\ not\ support\ SSL
    | certificate\ verify\ failed
    | root\ certificate\ file\ .*\ does\ not\ exist
    | server\ certificate\ for\ .*\ does\ not\ match\ host\ name
    | unrecognized\ configuration\ parameter
    | invalid\ (?:connection\ option|port\ number|sslmode\ value)
    | (?:Name\ or\ service|(?:node|host)name\ nor\ servname).*not\ known  # EAI_NONAME
    | Name\ does\ not\ resolve         # the same, of musl
    | No\ address\ associated\ with\ hostname  # EAI_NODATA
    """,
    re.VERBOSE,
)

# A line that says how it went with one address: libpq's and the server's words, and psycopg's own.
_ADDRESS = re.compile(r"failed:|FATAL:|^- host:")


@dataclass(frozen=True)
class Fault:
    """A failure to connect: what was raised, and when the first and the last were (`monotonic`)."""

    error: Exception
    permanent: bool
    since: float
    at: float


def is_about_credentials(error: Exception) -> bool:
    """True if the server did not like the password."""
    return "authentication failed" in str(error)


def is_permanent(error: Exception) -> bool:
    """Tell a fault that only a person can mend, as a wrong password, from one that may pass.

    A process that is out of threads, files or memory may have some again. What else is no
    `OperationalError` was not said by the server or the network: it is a parameter that libpq does
    not know, or an error in the project's own code. Trying again mends neither.
    """
    if isinstance(error, RuntimeError | OSError | MemoryError):
        return False
    if not isinstance(error, psycopg.OperationalError):
        return True
    # Each is one address that was tried; one that may come back is enough to go on.
    causes = [line for line in str(error).splitlines() if _ADDRESS.search(line)]
    return all(_PERMANENT.search(line) for line in causes or [str(error)])


def again(error: Exception) -> Exception:
    """Return a copy to raise in another thread: one instance would collect all their tracebacks."""
    copy = type(error)(*error.args)
    copy.__cause__ = error
    return copy
