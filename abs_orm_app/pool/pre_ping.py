"""Check that a connection is alive before it is handed out: look at its socket, or ping it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg

from abs_orm_app.pool import messages
from abs_orm_app.pool.causes import Spell
from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.core import Core
from abs_orm_app.pool.entry import ENDED, AnyConnection, Checkout, Entry
from abs_orm_app.pool.growth import CHECK_RETRY_MOST, retry_after
from abs_orm_app.pool.liveness import Answer, ping, ping_steps, server_has_closed
from abs_orm_app.pool.placement import Placement
from abs_orm_app.pool.queue import copied
from abs_orm_app.pool.returning import TimeLimits
from abs_orm_app.pool.server_errors import Fault, without_frames
from abs_orm_app.pool.steps import Blocking, Steps

PING_AFTER = 0.5  # idle time after which a checkout pings first; HikariCP's aliveBypassWindow
PING_TIMEOUT = 5.0  # seconds; HikariCP's validationTimeout
PING_LEAST = 0.05  # seconds; with less, a healthy connection may look hung

Check = Callable[[AnyConnection], object]


class PrePing:
    """Checks a pool's connections. `check`: the project's function, called instead of a ping."""

    def __init__(
        self, core: Core, placement: Placement, limits: TimeLimits, check: Check | None
    ) -> None:
        self._core, self._placement, self._limits = core, placement, limits
        self._spell = Spell()
        self.check = check

    def passes(self, conn: AnyConnection, entry: Entry, now: float, deadline: float) -> Steps[bool]:
        """Check a connection that has something to read, or was idle for long. It may be hung.

        If this returns False, the connection must be closed.
        """
        # Half of the remaining time: if this one is hung, a new connection needs the other half.
        allowed = min(PING_TIMEOUT, max((deadline - now) / 2, PING_LEAST))
        checking: Checkout = {}
        entry.checking = checking
        answer = yield from self.look(conn, entry, allowed)
        entry.checking = None
        if checking.setdefault(ENDED, self) is not self:
            return False  # its loop was not running, and the pool has taken the connection
        if answer is Answer.ALIVE:
            return entry.expires_at > now
        self._core.statistics.stale += 1
        if answer is Answer.NONE and self.check is None and not conn.closed:
            conn.close()  # at once: its session has nothing to cancel but the ping
            self._discard_suspects()
        return False

    def look(self, conn: AnyConnection, entry: Entry, timeout: float) -> Steps[Answer]:
        """Look at an idle connection's socket, and ping it, for up to `timeout` seconds."""
        # The server may have sent its last message without having closed the socket yet: ping it.
        if conn.closed or server_has_closed(conn, entry.poll):
            return Answer.WRONG
        suspicion = entry.suspicion
        answer = yield from self._ask(conn, entry, timeout)
        if answer is Answer.ALIVE and entry.suspicion is suspicion:
            entry.suspicion = None
        return answer

    def _ask(self, conn: AnyConnection, entry: Entry, timeout: float) -> Steps[Answer]:
        if self.check is not None:
            checked: Answer = yield Blocking(partial(self._call, self.check, conn, timeout))
            return checked
        if self._placement.must_ask(entry):
            answered = yield Blocking(partial(self._placement.asks_role, entry, conn, timeout))
            return Answer.ALIVE if answered else Answer.NONE
        answer = yield from ping_steps(conn, timeout)
        if answer is Answer.ALIVE and entry.must_ask:
            yield Blocking(partial(self._placement.look, entry, conn))
        elif answer is Answer.ALIVE:
            self._placement.look(entry, conn)
        return answer

    def _call(self, check: Check, conn: Any, timeout: float) -> Answer:
        """Call the project's own check. After any exception, the connection is not handed out."""
        try:
            in_time = self._limits.call(self._core, conn, timeout, check)
        except Exception as error:
            self._refused(conn, error)
            return Answer.WRONG
        if not in_time or conn.closed:
            why = messages.check_gave_none(in_time=in_time)
            self._refused(conn, psycopg.OperationalError(why))
            return Answer.NONE
        refusal = self._core.refusal
        if refusal is not None:
            self._core.refusal = None
            if self._spell.ends():
                self._core.say(messages.check_accepts(self._core.name, monotonic() - refusal.since))
        return Answer.ALIVE

    def _refused(self, conn: Any, error: Exception) -> None:
        """Record a refusal by the check, if the connection is new: others would fare no better."""
        core, now = self._core, monotonic()
        if conn._pool_entry.taken_at:
            return
        bare = without_frames(error)
        known = core.refusal
        since = known.since if known else now
        delay = retry_after(now - since, CHECK_RETRY_MOST)
        core.refusal = Fault(bare, False, since, now, delay, refused_by_check=True)
        text = messages.check_refuses(core.name, bare)
        if self._spell.is_news(text):
            core.say(text)

    def check_idle(self) -> None:
        """Ping each idle connection, and replace those that are expired or do not answer."""
        core, hangs = self._core, False  # once one does not answer, the others are presumed hung
        for conn in copied(core.idle):
            if not core.take_idle(conn):
                continue
            answer = Answer.NONE if hangs else ping(conn, PING_TIMEOUT)
            if answer is Answer.ALIVE:
                conn._pool_entry.idle_since = monotonic()
                core.add(conn)
            else:
                hangs = hangs or (answer is Answer.NONE and not conn.closed)
                conn.close()
                core.statistics.stale += 1
                core.discard(conn)

    def _discard_suspects(self) -> None:
        """Close the idle connections that are due for a ping: they are presumed hung, too."""
        oldest = monotonic() - PING_AFTER
        core = self._core
        for conn in copied(core.idle):
            entry = conn._pool_entry
            due = entry.idle_since < oldest or entry.suspicion is not None
            if due and core.take_idle(conn):
                core.statistics.stale += 1
                core.discard(conn)


def check_connection(conn: AnyConnection) -> None:
    """Raise `psycopg.OperationalError` if the connection does not answer within 5 s."""
    if ping(conn, PING_TIMEOUT) is not Answer.ALIVE:
        raise psycopg.OperationalError("the connection does not answer")
