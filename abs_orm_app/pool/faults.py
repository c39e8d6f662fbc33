"""Why a connection could not be made: the fault as a fact, and whether it is worth another try."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psycopg

from abs_orm_app.pool.server_errors import AUTHENTICATION_FAILED, classify

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
    """True if the server did not accept the password."""
    return classify(error) is AUTHENTICATION_FAILED


def is_permanent(error: Exception, *, has_connected: bool = False) -> bool:
    """Tell a fault that only a person can mend, as a wrong password, from one that may pass.

    has_connected: a connection has worked before. Then more passes by itself: the name of a
    container that restarts, a line of pg_hba.conf on a server that takes over.

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
    copy.__cause__ = error
    return copy


def without_frames(error: BaseException) -> Exception:
    """Return the error without its tracebacks: their frames would keep a socket alive with it."""
    chain: list[BaseException | None] = [error]
    for each in chain:
        if each is not None and each not in chain[: chain.index(each)]:
            each.__traceback__ = None
            chain += [each.__cause__, each.__context__]
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"{type(error).__name__} in a thread that opens connections")
