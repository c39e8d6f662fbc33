"""Why a connection could not be opened: the fault, and whether another attempt can help."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psycopg

from abs_orm_app.pool.server_errors import AUTHENTICATION_FAILED, classify

# A line about the attempt at one address: of libpq, of the server, or of psycopg.
_ADDRESS = re.compile(r"failed:|FATAL:|^- host:")


@dataclass(frozen=True)
class Fault:
    """A failure to connect: the last error, and when the first and last happened (`monotonic`)."""

    error: Exception
    permanent: bool
    since: float
    at: float


def is_about_credentials(error: Exception) -> bool:
    """True if the server did not accept the password."""
    return classify(error) is AUTHENTICATION_FAILED


def is_permanent(error: Exception, *, has_connected: bool = False) -> bool:
    """True for a fault that only a person can fix, such as a wrong password; False if it may pass.

    has_connected: a connection has worked before. Then more faults are temporary: the name of a
    container that restarts, a line of pg_hba.conf on a server that takes over.

    A process that is out of threads, files or memory may get some again. Any other error that is no
    `OperationalError` did not come from the server or the network: it is a parameter that libpq
    does not know, or an error in the project's own code. Another attempt fixes neither.
    """
    if isinstance(error, RuntimeError | OSError | MemoryError):
        return False
    if not isinstance(error, psycopg.OperationalError):
        return True
    # Each is one address that was tried; if one may come back, another attempt can help.
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
