"""Describes why a database could not be used: the cause, without secrets, and what to do."""

import re
from dataclasses import dataclass

from django.core.exceptions import ImproperlyConfigured

from abs_orm_app.config.texts import printable
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.secrets import scrub
from abs_orm_app.pool.server_errors import (
    AUTHENTICATION_FAILED,
    IMPOSSIBLE,
    NO_PASSWORD,
    NO_SOCKET,
    WRONG_SETTINGS,
    ServerError,
    classify,
)

INSTALL_POOL = "Install it: pip install 'psycopg[binary,pool]'."


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something failed. Neither text contains a secret or a control character."""

    cause: str
    hint: str
    problem: str = IMPOSSIBLE  # the kind of failure, in the words of the pool's messages


def failure_of(error: BaseException, database: Configured | None = None) -> Failure:
    """Summarize an error in one sentence, without any secret of DATABASES, and add what to do.

    database: the alias that failed, so that the hint can say where its settings come from.
    """
    # Remove secrets first: the next steps may change their spelling, or cut one in two.
    cause = one_line(scrub(str(error)) or type(error).__name__)
    kind = _kind(error, cause)
    return Failure(cause=cause, hint=_hint(error, cause, kind, database), problem=kind.problem)


def _hint(error: BaseException, cause: str, kind: ServerError, database: Configured | None) -> str:
    if "psycopg_pool" in cause and isinstance(error, ImproperlyConfigured | ImportError):
        return INSTALL_POOL
    if database and kind in (AUTHENTICATION_FAILED, NO_PASSWORD):
        return (
            f"{kind.hint} The user comes from {database.user_source}, the password from"
            f" {database.password_source}."
        )
    if database and kind is NO_SOCKET and not database.host:
        return (
            "No host is set, so a Unix socket of this machine is tried: set the host"
            " (postgresql://USER@HOST/NAME, or DB_HOST), or start PostgreSQL here."
        )
    return kind.hint


def _kind(error: BaseException, cause: str) -> ServerError:
    kind = classify(cause)
    # Not from the server, even if it contains a word of the server's errors, such as "timeout".
    wrong = isinstance(error, ImproperlyConfigured | LookupError | TypeError | ValueError)
    wrong = wrong and not isinstance(error, UnicodeError)  # about a host name
    return WRONG_SETTINGS if wrong and kind.problem != IMPOSSIBLE else kind


def one_line(text: str) -> str:
    """Return the first line, printable and with a full stop."""
    line = text.strip().partition("\n")[0].rstrip(".")
    line = re.sub(r"^connection (?:failed|is bad): ", "", line)
    return f"{printable(line)}."
