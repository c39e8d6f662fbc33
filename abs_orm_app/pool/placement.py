"""Keeps a connection, or has it replaced soon, depending on the role of its server.

`roles.py` has the rules. This module applies them when a connection is opened, returned or
suspected, and when a statement has failed. No lock guards it: each step is one assignment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any

import psycopg
from psycopg.pq import ConnStatus

from abs_orm_app.pool import roles
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.entry import AnyConnection, Entry
from abs_orm_app.pool.roles import Expectation, Role
from abs_orm_app.pool.server_errors import belongs_to_session

WAVE = 10.0  # seconds between two replacements of all connections for the same reason
ROLE_TIMEOUT = 1.0  # seconds for a server to report its role


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
        self._last_wave = -inf
        self._newest: tuple[Any, float] = (
            None,
            -inf,
        )  # the place of the newest primary, since when
        self.spreads = False  # load_balance_hosts=random
        self._left: dict[Any, float] = {}  # places that the primary has left, and when
        self._alternates = False  # the address keeps leading to several places
        self.expectation = Expectation(reads_only=reads_only)
        self._entries = entries
        self._read_only_since = inf  # inf: the newest connection was not read-only by default
        self._look_again_at = inf  # when to replace one of those, to see whether this is still so
        self._asks = False  # ask servers that report no role, because one has refused a write

    def fits(self, conn: AnyConnection) -> bool:
        """False for a new connection to a server that has reported a role that is not wanted."""
        return self._life(roles.reported(conn.pgconn)) == inf

    def role_of_new(self, conn: AnyConnection) -> Role:
        """The role of a new connection's server. May ask the server.

        Raises `psycopg.OperationalError` if the server is asked and does not answer.
        """
        role = roles.reported(conn.pgconn)
        if role is Role.UNKNOWN and self._asks:
            return _asked(conn, ROLE_TIMEOUT)
        return role

    def opened(
        self, entry: Entry, role: Role, began: float = inf, *, any_dead: bool = False
    ) -> None:
        """Record the role of a new connection's server; limit the connection's life if unwanted.

        `began`: when connecting to that server started. `any_dead`: another server may be dead.
        """
        entry.role = role
        wanted_before = self.expectation.wants_primary
        was_read_only = self._read_only_since < inf
        self.expectation.opened(role, entry.opened_at)
        if role is Role.READ_ONLY:
            self._read_only_since = min(self._read_only_since, entry.opened_at)
            self._look_later(entry.opened_at)
        else:
            self._read_only_since = inf
        if was_read_only or (self.expectation.wants_primary and not wanted_before):
            self._limit(self._entries)
        else:
            self._limit([entry])
        if role is Role.PRIMARY and self._wants_primary():
            self._follow(entry, began, any_dead=any_dead)

    def _wants_primary(self) -> bool:
        return self.wanted in ("read-write", "primary") or (
            not self.wanted and self.expectation.wants_primary
        )

    def _follow(self, newest: Entry, began: float, *, any_dead: bool) -> None:
        """Replace older connections to another primary; or this one, if it was started before the
        newest primary was found: its server may have been replaced, and not know it yet.

        Does nothing if the address spreads connections over several servers. A failover goes one
        way, but such an address soon leads back to a former server, although nothing is dead.
        """
        if self.spreads or self._alternates:
            return
        place = _place(newest.pgconn)
        last, at = self._newest
        if last in (place, None):  # the others were replaced before
            self._newest = place, newest.opened_at
            return
        others = list(self._entries)
        if began < at:
            others, place = [newest], last
        elif began - self._left.get(place, -inf) < WAVE:
            self._alternates = not any_dead
            return
        else:
            self._newest = place, newest.opened_at
            self._left[last] = newest.opened_at
        for entry in others:
            older = entry is newest or entry.opened_at < newest.opened_at
            if older and entry.role is Role.PRIMARY and _place(entry.pgconn) not in (place, None):
                entry.misplaced = True
                entry.expire()

    def returned(self, entry: Entry, conn: AnyConnection) -> None:
        """Check a connection that was returned, idle or broken."""
        if conn.closed:
            self.suspect_all()
        else:
            self.look(entry, conn)

    def look(self, entry: Entry, conn: AnyConnection) -> None:
        """Check again the role of the server of a connection that is idle and works."""
        if entry.must_ask:
            entry.must_ask = False
            with suppress(psycopg.OperationalError):
                self._asked(entry, _asked(conn, ROLE_TIMEOUT))
            return
        role = roles.reported(entry.pgconn)
        if role is Role.READ_ONLY and monotonic() >= self._look_again_at and self._endures(role):
            self._look_later(monotonic())
            entry.misplaced = True
            entry.expire()
        if role is entry.role or role is Role.UNKNOWN:
            return
        if role is Role.READ_ONLY and entry.dirty is not None:
            return  # the project may have set it: look again once the session is clean
        entry.role = role
        self._limit([entry])

    def asks_role(self, entry: Entry, conn: AnyConnection, timeout: float) -> bool:
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
        """Learn from the error of a statement on a checked-out connection. Sends nothing."""
        sqlstate = getattr(error, "sqlstate", None)
        if roles.makes_suspects(sqlstate) or conn.pgconn.status == ConnStatus.BAD:
            self.suspect_all()
        if sqlstate == roles.READ_ONLY_TRANSACTION:
            self._write_refused(entry)
        if belongs_to_session(error):
            self._expire_older(entry)

    def suspect_all(self) -> None:
        """Require a ping of all open connections before they are handed out."""
        for entry in list(self._entries):
            entry.suspect()

    def _expire_older(self, failed: Entry) -> None:
        """Replace all open connections, each as soon as it is not in use.

        The schema was changed, or something else that their sessions have cached. If new sessions
        fail as well, the cause is another one; all are then replaced once per `WAVE` seconds.
        """
        now, last = monotonic(), self._last_wave
        if failed.opened_at < last or now - last < WAVE:
            return
        self._last_wave = now
        for entry in list(self._entries):
            entry.expire()

    def _write_refused(self, entry: Entry) -> None:
        role = roles.reported(entry.pgconn)
        if role is Role.STANDBY:
            self._refused()
        elif role is Role.UNKNOWN:
            self._asks = entry.must_ask = not self.expectation.reads_only
            self.suspect_all()
        elif role is not entry.role:
            self.suspect_all()  # it has become read-only: a ping lets the others report that, too
        elif role is Role.READ_ONLY and self.expectation.ever_wanted_primary:
            self._refused()
        # Otherwise the project made the transaction or its role read-only.

    def _refused(self) -> None:
        self.expectation.refused(monotonic())
        self._limit(self._entries)

    def _asked(self, entry: Entry, role: Role) -> None:
        """Record the role that a server has given when asked for it."""
        entry.role = role
        if role is Role.STANDBY:
            self._refused()
            self.suspect_all()
        else:
            self._limit([entry])

    def _endures(self, role: Role) -> bool:
        """True if connections to such a server are kept because new ones would be no better: the
        server or the role was made read-only. One is replaced now and then, to check.
        """
        read_only = role is Role.READ_ONLY and self._read_only_since < inf
        return read_only and not self.wanted and self.expectation.wants_primary

    def _look_later(self, now: float) -> None:
        lasts = now - self._read_only_since
        self._look_again_at = now + max(roles.MISPLACED_LIFE, min(lasts / 2, roles.LOOK_AGAIN))

    def _limit(self, entries: Iterable[Entry]) -> None:
        for entry in list(entries):
            life = self._life(entry.role)
            if life < inf and not self._endures(entry.role):
                entry.misplaced = True
                entry.expires_at = min(entry.expires_at, entry.opened_at + life)

    def _life(self, role: Role) -> float:
        return roles.life(self.wanted, role, self.expectation.wants_primary)

    def servers(self) -> list[ServerInUse]:
        """The servers that the open connections lead to, the one with the most first."""
        found = Counter((address_of(entry.pgconn), entry.role) for entry in list(self._entries))
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


def _place(pgconn: Any) -> tuple[bytes, bytes, bytes] | None:
    """Where a connection leads, even if its host name has moved since; None if it is closed."""
    with suppress(psycopg.OperationalError):
        return pgconn.host, pgconn.hostaddr, pgconn.port
    return None


def address_of(pgconn: Any) -> str:
    """Host and port of a connection; "" if it is closed."""
    with suppress(psycopg.OperationalError):
        host, port = pgconn.host.decode(), pgconn.port.decode()
        return host if host.startswith(("/", "@")) else f"{host}:{port}"
    return ""
