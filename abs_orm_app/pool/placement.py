"""Keep a connection, or replace it soon, depending on the role of its server.

`roles.py` has the rules. This applies them when a connection is opened, returned or suspected, and
when a statement has failed. No lock guards it, see `pool.py`: each step is one assignment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Any

import psycopg
from psycopg.pq import ConnStatus

from abs_orm_app.pool import roles
from abs_orm_app.pool.entry import AnyConnection, Entry
from abs_orm_app.pool.roles import Expectation, Role

ASK_TIMEOUT = 1.0  # seconds for a server to say what it is


@dataclass(frozen=True, order=True)
class ServerInUse:
    """One server that a pool has connections to."""

    address: str  # host and port
    role: str  # a value of Role
    connections: int
    wanted: bool  # False: connections to it are replaced


class Placement:
    """The servers of one pool's connections.

    entries: the pool's entries, which this only reads.
    wanted: `target_session_attrs`, "" if it is not set.
    """

    def __init__(self, entries: set[Entry], *, reads_only: bool) -> None:
        self.wanted = ""
        self.expectation = Expectation(reads_only=reads_only)
        self._entries = entries
        self._asks = False  # ask servers that report nothing, because one has refused a write

    def fits(self, conn: AnyConnection) -> bool:
        """False for a new connection to a server that has reported a role that is not wanted."""
        return self._life(roles.reported(conn.pgconn)) == inf

    def role_of_new(self, conn: AnyConnection) -> Role:
        """The role of a new connection's server. May ask the server.

        Raises `psycopg.OperationalError` if the server is asked and does not answer.
        """
        role = roles.reported(conn.pgconn)
        if role is Role.UNKNOWN and self._asks:
            return _asked(conn, ASK_TIMEOUT)
        return role

    def opened(self, entry: Entry, role: Role) -> None:
        """Record the role of a new connection's server; limit the connection's life if unwanted."""
        entry.role = role
        wanted_before = self.expectation.wants_primary
        self.expectation.opened(role, entry.opened_at)
        if self.expectation.wants_primary and not wanted_before:
            self._limit(self._entries)
        else:
            self._limit([entry])

    def returned(self, entry: Entry, conn: AnyConnection) -> None:
        """A connection comes back to the pool, idle or broken."""
        if conn.closed:
            self.suspect_all()
        else:
            self.look(entry, conn)

    def look(self, entry: Entry, conn: AnyConnection) -> None:
        """Look again at the role of the server of a connection that is idle and works."""
        if entry.must_ask:
            entry.must_ask = False
            with suppress(psycopg.OperationalError):
                self._asked(entry, _asked(conn, ASK_TIMEOUT))
            return
        role = roles.reported(entry.pgconn)
        if role is entry.role or role is Role.UNKNOWN:
            return
        if role is Role.READ_ONLY and entry.dirty is not None:
            return  # the project may have set it; the session is cleaned, and looked at again
        entry.role = role
        self._limit([entry])

    def answers(self, entry: Entry, conn: AnyConnection, timeout: float) -> bool:
        """Ask for the role instead of pinging; False if the server does not answer."""
        try:
            self._asked(entry, _asked(conn, timeout))
        except psycopg.OperationalError:
            return False
        return True

    def must_ask(self, entry: Entry) -> bool:
        """True if the server must be asked for its role instead of pinged."""
        return self._asks and roles.reported(entry.pgconn) is Role.UNKNOWN

    def failed(self, conn: AnyConnection, entry: Entry, error: BaseException) -> None:
        """A statement failed on this connection, which is checked out. Costs no message."""
        sqlstate = getattr(error, "sqlstate", None)
        if roles.makes_suspects(sqlstate) or conn.pgconn.status == ConnStatus.BAD:
            self.suspect_all()
        if sqlstate == roles.READ_ONLY_TRANSACTION:
            self._write_refused(entry)

    def suspect_all(self) -> None:
        """Have the connections that are open now pinged before they are handed out."""
        for entry in list(self._entries):
            entry.suspect()

    def _write_refused(self, entry: Entry) -> None:
        role = roles.reported(entry.pgconn)
        if role is Role.STANDBY:
            self._refused()
        elif role is Role.UNKNOWN:
            self._asks = entry.must_ask = not self.expectation.reads_only
            self.suspect_all()
        elif role is not entry.role:
            self.suspect_all()  # it was made read-only: a ping lets the others report that, too
        elif role is Role.READ_ONLY and self.expectation.ever_wanted_primary:
            self._refused()
        # Otherwise the project made the transaction or its role read-only.

    def _refused(self) -> None:
        self.expectation.refused(monotonic())
        self._limit(self._entries)

    def _asked(self, entry: Entry, role: Role) -> None:
        """Record the answer of a server that reports nothing without being asked."""
        entry.role = role
        if role is Role.STANDBY:
            self._refused()
            self.suspect_all()
        else:
            self._limit([entry])

    def _limit(self, entries: Iterable[Entry]) -> None:
        for entry in list(entries):
            life = self._life(entry.role)
            if life < inf:
                entry.misplaced = True
                entry.expires_at = min(entry.expires_at, entry.opened_at + life)

    def _life(self, role: Role) -> float:
        return roles.life(self.wanted, role, self.expectation.wants_primary)

    def servers(self) -> list[ServerInUse]:
        """The servers that the open connections lead to, the one with the most first."""
        found = Counter((_address(entry.pgconn), entry.role) for entry in list(self._entries))
        return [
            ServerInUse(address, role.value, count, self._life(role) == inf)
            for (address, role), count in found.most_common()
        ]


def _asked(conn: AnyConnection, timeout: float) -> Role:
    role = roles.asked(conn, timeout)
    if role is None:
        conn.close()
        raise psycopg.OperationalError("the server did not say whether it is a standby")
    return role


def _address(pgconn: Any) -> str:
    """Host and port of a connection; "" if it is closed."""
    with suppress(psycopg.OperationalError):
        host, port = pgconn.host.decode(), pgconn.port.decode()
        return host if host.startswith(("/", "@")) else f"{host}:{port}"
    return ""
