"""A lease: a connection that one wrapper holds, what needs its session, and what changed on it.

A lease ends once. After that it does not touch the connection, which may have another holder.
The wrapper ends it, or, if it is `early`, its last user does. That user can be a
cursor that is garbage-collected: in another thread, or in this one between any two steps. So the
right to end a lease is an object that one thread pops. Code that begins to use the connection first
adds itself to `users`, and then looks whether the right is still there (`begin`).
"""

from __future__ import annotations

from contextlib import suppress
from time import sleep
from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus

from abs_orm_app.backends.session_state import UNSEEN, Change
from abs_orm_app.pool.entry import Frames, Pin, frames_of_caller
from abs_orm_app.pool.pins import TRANSACTION, UNUSED

if TYPE_CHECKING:
    from collections.abc import Hashable

    from psycopg import Connection

CURSOR_OPEN = Pin("cursor", "an open cursor")
PORTAL_OPEN = Pin("cursor", "an open server-side cursor")
AT_REST = frozenset({TransactionStatus.IDLE, TransactionStatus.UNKNOWN})
LEASE = "_lease"  # the attribute of a leased connection that is its lease
SPIN = 1000  # looks at a lease that another thread may be ending; each yields the processor

HANDLE = Change("handle", "the connection's own handle")
PINNED = Change(UNSEEN, "pinned()")


class Lease:
    """What one wrapper knows about the connection that it has checked out.

    `early`: it ends as soon as nothing needs the session, and not only with the request.
    `users`: what needs the connection now: cursors by their `id`, and the wrapper's own steps. The
    value is True for a server-side cursor.
    `change`: the first change of the session that was found; it pins the lease.
    `changed_at`: the stack that made the change, if tracing is on.
    `left`: a change that does not pin the lease, but must be cleaned.
    `asked`: the project asked for a connection, to take its handle (`ensure_connection()`).
    `kept`: the number of `pinned()` blocks around it.
    `in_request`: its thread is handling a request, at whose end the connection is returned.
    `receiving`: `connection_created` is being sent. Its receivers are called for each lease, so
    what they set does not pin the lease.
    """

    __slots__ = (
        "asked", "change", "changed_at", "connection", "done", "early", "in_request", "kept",
        "left", "receiving", "right", "used_at", "users",
    )  # fmt: skip

    def __init__(
        self, connection: Connection[Any], *, early: bool, kept: int, in_request: bool
    ) -> None:
        self.connection: Connection[Any] | None = connection
        self.early = early
        self.users: dict[Hashable, bool] = {}
        self.right = [True]
        self.done = False
        self.change: Change | None = None
        self.changed_at: Frames | None = None
        self.left: Change | None = None
        self.asked = False
        self.kept = kept
        self.used_at: float = connection._pool_entry.taken_at  # type: ignore[attr-defined]
        self.in_request = in_request
        self.receiving = False
        connection._lease = self  # type: ignore[attr-defined]

    def begin(self, user: Hashable) -> bool:
        """Record that `user` needs the connection; False if the lease has ended."""
        self.users[user] = False
        return bool(self.right) or self._goes_on(user)

    def _goes_on(self, user: Hashable) -> bool:
        """Wait for the thread that took the right: it ends the lease, or puts the right back."""
        for _ in range(SPIN):
            if self.done:
                break
            if self.right:
                return True
            sleep(0)
        self.users.pop(user, None)
        return False

    def leave(self, user: Hashable) -> None:
        """`user` does not need the connection any more."""
        self.users.pop(user, None)
        if self.early and not self.users:
            self.end_if_idle()

    def drop(self, user: Hashable) -> None:
        """`user` was garbage-collected, at any point of any thread."""
        with suppress(ValueError):  # the connection is lost as well, or the parent's of a fork
            self.leave(user)

    def has_portals(self) -> bool:
        """True while a server-side cursor is open."""
        return True in self.users.values()

    def note(self, change: Change) -> None:
        """The session was changed, or is about to be."""
        if self.receiving:
            if self.left is None or change.lasts:
                self.left = change
        elif self.change is None or (change.lasts and not self.change.lasts):
            self.change = change
            self.trace()

    def ask(self) -> None:
        """The project asked for a connection, and may keep its handle."""
        self.asked = True
        self.trace()

    def trace(self) -> None:
        """Record the stack above the caller, if tracing is on."""
        pool = getattr(self.connection, "_pool", None)
        if pool is not None and pool.leak_seconds is not None:
            self.changed_at = frames_of_caller()

    def pin(self) -> Pin | None:
        """What needs the session; `UNUSED` if nothing does, but the lease continues.

        None while a statement is executed. Called by other threads, for reports.
        """
        connection = self.connection
        if connection is None:
            return None
        if (change := self.change) is not None:
            return Pin(change.kind, change.what, self.changed_at)
        if self.kept:
            return Pin("pinned", PINNED.what, self.changed_at)
        if self.asked:
            return Pin(HANDLE.kind, "ensure_connection()", self.changed_at)
        if connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
            return None
        if not is_at_rest(connection):
            return TRANSACTION
        if self.users:
            return PORTAL_OPEN if self.has_portals() else CURSOR_OPEN
        return None if self.early else UNUSED

    def end_if_idle(self) -> bool:
        """End the lease if nothing needs the session; True if this call has ended it."""
        if self._is_needed():
            return False
        try:
            self.right.pop()
        except IndexError:  # another thread is ending it
            return False
        connection = self.connection
        if connection is None or self._is_needed() or not is_at_rest(connection):
            self.right.append(True)
            return False
        self._give_back(connection)
        return True

    def _is_needed(self) -> bool:
        # `users` first: who records a change or asks is in it meanwhile.
        return bool(self.users or self.change is not None or self.kept or self.asked)

    def end_if_unused(self, since: float) -> bool:
        """End the lease for a waiting request, if it is outside of a request and unused `since`."""
        return not self.in_request and self.used_at < since and self.end_if_idle()

    def end(self) -> None:
        """End the lease, even if something needs the session."""
        try:
            self.right.pop()
        except IndexError:
            return
        connection = self.connection
        if connection is not None:
            if self.users and self.has_portals():
                self.note(Change("held cursor", "an open server-side cursor"))
            self._give_back(connection)

    def _give_back(self, connection: Any) -> None:
        # Drop the reference first: afterwards the connection may have another holder.
        self.connection = connection._lease = None
        self.done = True
        if (change := self.change or self.left) is not None:
            connection._pool_entry.dirty = change
        connection._pool.putconn(connection)

    def abandon(self) -> Connection[Any] | None:
        """End the lease without returning the connection to the pool; return it to the caller."""
        connection, self.connection = self.connection, None
        self.done = True
        self.right.clear()
        return connection


def is_at_rest(connection: Connection[Any]) -> bool:
    """True between two transactions, in autocommit; also if the connection is broken there."""
    return connection.autocommit and connection.pgconn.transaction_status in AT_REST
