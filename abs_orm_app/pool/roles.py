"""Is this connection on the server that its alias wants: a primary, a standby, either?

PostgreSQL 14 and newer reports `in_hot_standby` and `default_transaction_read_only` to each client
unasked. What reports nothing (older servers, some poolers) is asked once it has refused a write.

With `target_session_attrs` the user has said what is wanted. Without it, a pool wants a primary
once it has seen one, or once a server has refused a write. It takes that back (`Expectation`) where
the address has led to standbys for long and no write was refused.

A connection on the wrong server is not refused, because it can still read; it is kept for a moment
only. So the pool follows an address as soon as that leads elsewhere, and opens no connection for
each request meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any

import psycopg

from abs_orm_app.pool import liveness

MISPLACED_LIFE = 0.25  # seconds that a connection on a standby is kept where a primary is wanted
PREFERRED_LIFE = 60.0  # seconds that one on a primary is kept with prefer-standby
FORGET = 300.0  # seconds of standbys, and no write refused, after which no primary is wanted
QUIET = 60.0  # seconds without a new connection to a standby that end such a time

READ_ONLY_TRANSACTION = "25006"  # a write was refused
ENDED_BY_SERVER = frozenset({"57P01", "57P02", "57P03"})  # shutdown, crash, not accepting
CONNECTION_EXCEPTION = "08"  # the class


class Role(Enum):
    """What a server is to a connection. Values are the words that reports show."""

    PRIMARY = "primary"
    READ_ONLY = "read-only"  # a primary, but transactions are read-only unless they say otherwise
    STANDBY = "standby"
    UNKNOWN = "unknown"  # it does not say


def reported(pgconn: Any) -> Role:
    """The role by what the server has reported last. Costs no message."""
    return role_of(
        pgconn.parameter_status(b"in_hot_standby"),
        pgconn.parameter_status(b"default_transaction_read_only"),
    )


def role_of(in_hot_standby: bytes | None, read_only: bytes | None) -> Role:
    if in_hot_standby == b"on":
        return Role.STANDBY
    if read_only == b"on":
        return Role.READ_ONLY
    return Role.UNKNOWN if in_hot_standby is None else Role.PRIMARY


def asked(conn: psycopg.Connection[Any], timeout: float) -> Role | None:
    """Ask an idle connection for its server's role; None without an answer in `timeout` seconds."""
    answer = liveness.ask(conn, b"SELECT pg_catalog.pg_is_in_recovery()", timeout)
    return {b"t": Role.STANDBY, b"f": Role.PRIMARY}.get(answer) if answer is not None else None


def life(wanted: str, role: Role, wants_primary: bool) -> float:
    """Seconds that a connection may be kept on a server of this role; inf: as long as any.

    wanted: `target_session_attrs`, "" where it is not set.
    wants_primary: what an `Expectation` says; counts where nothing is set.
    """
    if role is Role.UNKNOWN:
        return inf
    match wanted:
        case "":
            return MISPLACED_LIFE if wants_primary and role is not Role.PRIMARY else inf
        case "read-write":
            return inf if role is Role.PRIMARY else 0.0
        case "primary":
            return 0.0 if role is Role.STANDBY else inf
        case "prefer-standby":
            return inf if role is Role.STANDBY else PREFERRED_LIFE
    return inf  # any, standby, read-only: libpq has looked, and a promoted standby reads as well


@dataclass
class Expectation:
    """Whether a pool without `target_session_attrs` wants a primary.

    reads_only: the project only reads through this alias (a mirror, a router's): it wants none,
    whatever it has seen.
    """

    reads_only: bool = False
    wants_primary: bool = False
    _forgot: bool = False
    _standby_since: float = inf
    _standby_at: float = -inf

    def opened(self, role: Role, now: float) -> None:
        """A connection was opened, at a server of this role."""
        if role is Role.PRIMARY:
            self.wants_primary = self.wants_primary or not (self.reads_only or self._forgot)
        elif role is not Role.UNKNOWN:
            if now - self._standby_at > QUIET:
                self._standby_since = now
            self._standby_at = now
            if self.wants_primary and now - self._standby_since > FORGET:
                self.wants_primary, self._forgot = False, True

    def refused(self, now: float) -> None:
        """A standby has refused a write."""
        self.wants_primary = not self.reads_only
        self._forgot = False
        self._standby_since = self._standby_at = now


def makes_suspects(sqlstate: str | None) -> bool:
    """True if an error with this SQLSTATE says that the other connections may be gone, too."""
    if sqlstate is None:
        return False
    return sqlstate in ENDED_BY_SERVER or sqlstate.startswith(CONNECTION_EXCEPTION)
