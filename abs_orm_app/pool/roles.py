"""Decides whether a connection's server is what the alias wants: a primary, a standby, either.

PostgreSQL 14 and newer reports `in_hot_standby` and `default_transaction_read_only` to each client
without being asked. A server that reports nothing (older ones, some poolers) is asked after it has
refused a write.

`target_session_attrs` says what is wanted. Without it, a pool wants a primary once it has seen one,
or once a server has refused a write. It stops wanting one (`Expectation`) if the address has led to
standbys for a long time and no write was refused.

A connection to the wrong server is not refused, because it can still read, but it is kept only for
a moment. So the pool follows an address that moves, without opening a connection for each request
in the meantime.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any

import psycopg

from abs_orm_app.pool import liveness

MISPLACED_LIFE = 0.25  # seconds that a connection to a standby is kept if a primary is wanted
PREFERRED_LIFE = 60.0  # seconds that a connection to a primary is kept with prefer-standby
LOOK_AGAIN = 2.0  # maximum seconds until a pool checks a read-only server again
FORGET = 300.0  # seconds with standbys and no refused write, after which no primary is wanted
QUIET = 60.0  # such a period ends after these seconds without a new connection to a standby

READ_ONLY_TRANSACTION = "25006"  # a write was refused
ENDED_BY_SERVER = frozenset({"57P01", "57P02", "57P03"})  # shutdown, crash, not accepting
CONNECTION_EXCEPTION = "08"  # the class


class Role(Enum):
    """The role of a server. Values are the words that reports show."""

    PRIMARY = "primary"
    READ_ONLY = "read-only"  # a primary, but transactions are read-only by default
    STANDBY = "standby"
    UNKNOWN = "unknown"  # it does not report its role


def reported(pgconn: Any) -> Role:
    """The role that the server last reported; unknown if it is closed. Sends nothing."""
    try:
        return role_of(
            pgconn.parameter_status(b"in_hot_standby"),
            pgconn.parameter_status(b"default_transaction_read_only"),
        )
    except psycopg.OperationalError:
        return Role.UNKNOWN


def role_of(in_hot_standby: bytes | None, read_only: bytes | None) -> Role:
    if in_hot_standby == b"on":
        return Role.STANDBY
    if read_only == b"on":
        return Role.READ_ONLY
    return Role.UNKNOWN if in_hot_standby is None else Role.PRIMARY


def wanted_by(pgconn: Any) -> str:
    """The `target_session_attrs` that a connection was made with; "" for libpq's default, `any`."""
    value = made_with(pgconn, b"target_session_attrs")
    return "" if value == "any" else value


def made_with(pgconn: Any, name: bytes) -> str:
    """The value of an option that a connection was made with; "" if it has none."""
    return next((o.val.decode() for o in pgconn.info if o.keyword == name and o.val), "")


def asked(conn: psycopg.Connection[Any], timeout: float) -> Role | None:
    """Ask the server of an idle connection for its role; None if no answer comes in `timeout` s."""
    answer = liveness.ask(conn, b"SELECT pg_catalog.pg_is_in_recovery()", timeout)
    return {b"t": Role.STANDBY, b"f": Role.PRIMARY}.get(answer) if answer is not None else None


def life(wanted: str, role: Role, wants_primary: bool) -> float:
    """Seconds that a connection to a server of this role may be kept; inf: no limit.

    wanted: `target_session_attrs`, "" if it is not set.
    wants_primary: from an `Expectation`; counts only if `target_session_attrs` is not set.
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
    return inf  # any, standby, read-only: libpq has checked, and a promoted standby can read, too


@dataclass
class Expectation:
    """Whether a pool without `target_session_attrs` wants a primary.

    reads_only: the project only reads through this alias (a mirror, or by a router): it never
    wants a primary.
    """

    reads_only: bool = False
    wants_primary: bool = False
    _forgot: bool = False
    _standby_since: float = inf
    _standby_at: float = -inf

    @property
    def ever_wanted_primary(self) -> bool:
        return self.wants_primary or self._forgot

    def opened(self, role: Role, now: float) -> None:
        """Record that a connection to a server of this role was opened."""
        if role is Role.PRIMARY:
            self.wants_primary = self.wants_primary or not (self.reads_only or self._forgot)
        elif role is not Role.UNKNOWN:
            if now - self._standby_at > QUIET:
                self._standby_since = now
            self._standby_at = now
            if self.wants_primary and now - self._standby_since > FORGET:
                self.wants_primary, self._forgot = False, True

    def refused(self, now: float) -> None:
        """Record that a standby, or a primary that has become read-only, has refused a write."""
        self.wants_primary = not self.reads_only
        self._forgot = False
        self._standby_since = self._standby_at = now


def makes_suspects(sqlstate: str | None) -> bool:
    """True if an error with this SQLSTATE means that the other connections may be dead, too."""
    if sqlstate is None:
        return False
    return sqlstate in ENDED_BY_SERVER or sqlstate.startswith(CONNECTION_EXCEPTION)
