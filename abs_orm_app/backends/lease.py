"""A lease: a connection that one wrapper holds, what needs its session, and what changed on it.

A lease ends once. After that it does not touch the connection, which may have another holder. It
may be ended at any point: by its wrapper, by a cursor that is garbage-collected in any thread, or
by the pool for a waiting request. None of them waits for another:

- The state is a *vote*: a dict, open while it is empty. To end an idle lease, a thread proposes the
  end, checks once more for users, and then decides. A new user registers first and then checks the
  vote: if there is a proposal, it decides that the lease continues, and opens the next vote. One of
  the two decides, by `dict.setdefault`, and both see the decision.
- An interrupted step leaves nothing behind: an open proposal costs the next user one step, and
  whoever finds an ended lease returns its connection (`finish`), which the pool accepts once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from psycopg.pq import TransactionStatus

from abs_orm_app.backends.session_state import UNSEEN, Change
from abs_orm_app.pool.entry import IN_TRANSACTION, Frames
from abs_orm_app.pool.holders import TRANSACTION, UNUSED, Pin, frames_of_caller

if TYPE_CHECKING:
    from collections.abc import Sized

    from psycopg import Connection

PROPOSED, DECISION, NEXT = "proposed", "decision", "next"  # the keys of a vote
GOES_ON, ENDED = "goes on", "ended"  # its decisions
ALWAYS = (True,)  # `wanted` of a lease that ends as soon as nothing needs the session

LEASE = "_lease"  # the attribute of a connection that is its lease, or the last one

CURSOR_OPEN = Pin("cursor", "an open cursor")
PORTAL_OPEN = Pin("cursor", "an open server-side cursor")
HANDLE = Change("handle", "the connection's own handle")
ASKED = Change("handle", "ensure_connection()")
AUTOCOMMIT = Change("setting", "set_autocommit(True)")
PINNED = Change(UNSEEN, "pinned()")
_PORTAL_LEFT = Change("held cursor", "an open server-side cursor")


class Lease:
    """What one wrapper knows about the connection that it has checked out.

    `connection`: None once it was returned. `checkout`: tells the pool which checkout to end.
    `leases`: the leases of its wrapper that were not returned yet; several, if a signal handler has
    queried while one was being started.
    `wanted`: if this is not empty, the lease ends as soon as nothing needs the session.
    `request`: the one that its thread was serving, or the last one before.
    `users`: weak references to the `User`s that need the connection now.
    `pinned`: why it lasts until its wrapper ends it; `pinned_at`: the stack, if tracing is on.
    `portals`: the names of server-side cursors that the server may have. (A garbage collection
    clears the weak references in `users` before it closes the cursors.)
    `dirty`: what was changed on the session, and must be cleaned before the next holder.
    """

    __slots__ = (
        "checkout", "connection", "dirty", "leases", "pinned", "pinned_at", "pool", "portals",
        "request", "used_at", "users", "vote", "wanted",
    )  # fmt: skip

    def __init__(
        self, connection: Any, wanted: Sized, leases: set[Lease], request: object = ()
    ) -> None:
        self.connection: Connection[Any] | None = connection
        self.pool = connection._pool
        entry = connection._pool_entry
        self.checkout = entry.checkout
        self.used_at: float = entry.taken_at  # when the last statement started
        self.wanted, self.request = wanted, request
        self.users: set[ref[User]] = set()
        self.vote: dict[str, Any] = {}  # the newest vote, or one before it: follow `NEXT`
        self.pinned: Change | None = None
        self.pinned_at: Frames | None = None
        self.portals: set[str] | None = None
        self.dirty: Change | None = None
        connection._lease = self
        self.leases = leases
        leases.add(self)

    # Its state

    def has_ended(self) -> bool:
        vote: dict[str, Any] | None = self.vote
        while vote:
            if vote.get(DECISION) is ENDED:
                return True
            vote = vote.get(NEXT)
        return False

    def goes_on(self) -> bool:
        """Decide for a registered user that the lease continues; False if it has ended."""
        vote = self.vote
        while vote:
            if vote.setdefault(DECISION, GOES_ON) is ENDED:
                return False
            vote = self.vote = vote.setdefault(NEXT, {})
        return True

    def end_if_idle(self) -> bool:
        """End the lease if nothing needs the session; True if this call returned the connection."""
        vote = self.vote
        while self._is_idle():
            vote[PROPOSED] = True
            if vote.setdefault(DECISION, ENDED if self._is_idle() else GOES_ON) is ENDED:
                return self.finish()
            vote = self.vote = vote.setdefault(NEXT, {})
        return False

    def end(self) -> None:
        """End the lease, even if something needs the session."""
        vote = self.vote
        while vote.setdefault(DECISION, ENDED) is not ENDED:
            vote = vote.setdefault(NEXT, {})
        self.finish()

    def finish(self) -> bool:
        """Return the connection of an ended lease; True if this call returned it."""
        connection = self.connection
        if connection is None:
            self.leases.discard(self)  # the thread that returned it may have been interrupted
            return False
        if self.portals:
            self.soil(_PORTAL_LEFT)
        returned: bool = self.pool.end_checkout(connection, self.checkout, self.dirty)
        self.connection = None
        self.leases.discard(self)
        return returned

    def abandon(self) -> Connection[Any] | None:
        """End the lease, but give the connection to the caller, not to the pool."""
        connection, self.connection = self.connection, None
        self.leases.discard(self)
        self.end()
        return connection

    def reclaim(self) -> bool:
        """End the lease, for the pool, if its holder would not keep it; True if it was returned.

        Also completes an end that was interrupted.
        """
        return self.finish_if_ended() or (bool(self.wanted) and self.end_if_idle())

    def finish_if_ended(self) -> bool:
        """Return the connection of a lease whose end was interrupted; True if this call did."""
        return self.has_ended() and self.finish()

    def _is_idle(self) -> bool:
        # Check `users` first: a user that is pinning the lease is among them meanwhile.
        if self.users or self.pinned is not None:
            return False
        connection = self.connection
        # Without a user, a statement that is being executed was abandoned.
        return connection is None or (
            connection.autocommit and connection.pgconn.transaction_status not in IN_TRANSACTION
        )

    # What needs the session, and what changed on it

    def note(self, change: Change) -> None:
        """Record that the session was changed, or is about to be; this pins the lease."""
        self.soil(change)
        if self.pinned is None or self.pinned is ASKED:
            self.pin(change)

    def soil(self, change: Change) -> None:
        """Have the session cleaned before its next holder."""
        if self.dirty is None or (change.lasts and not self.dirty.lasts):
            self.dirty = change

    def pin(self, why: Change) -> None:
        """Keep the connection until the wrapper ends the lease. The caller must be a user."""
        self.pinned = why
        if self.pool.leak_seconds is not None:
            self.pinned_at = frames_of_caller()

    def has_portals(self) -> bool:
        """True while a server-side cursor is open."""
        return any(user.why is PORTAL_OPEN for user in self._living_users())

    def why_kept(self) -> Pin | None:
        """Return what needs the session; `UNUSED` if nothing does, but the lease continues.

        None while a statement is being executed. Other threads call this, for reports.
        """
        connection = self.connection
        if connection is None:
            return None
        if (pinned := self.pinned) is not None:
            return Pin(pinned.kind, pinned.what, self.pinned_at)
        users = self._living_users()
        blocks = [user.why for user in users if isinstance(user, Block)]
        if blocks:
            return blocks[0]
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.ACTIVE:
            return None
        if status in IN_TRANSACTION or not connection.autocommit:
            return TRANSACTION
        reasons = [user.why for user in users if user.why is not None]
        if reasons:
            return PORTAL_OPEN if PORTAL_OPEN in reasons else reasons[0]
        return None if users or self.wanted is ALWAYS else UNUSED

    def _living_users(self) -> list[User]:
        users = [weak() for weak in list(self.users)]
        return [user for user in users if user is not None]


class User:
    """Something that needs the connection of a lease until it leaves or is garbage-collected.

    A built-in function then ends its registration: no exception can interrupt that, as one can in
    `__del__` or in a `finally`. At worst, the lease does not end at once.
    """

    why: Pin | None = None  # for reports
    _lease: Lease | None = None
    _registration: ref[User] | None = None

    def join(self, lease: Lease) -> bool:
        """Register; False if the lease has ended."""
        users = lease.users
        self._lease = lease
        self._registration = mine = ref(self, users.discard)
        users.add(mine)
        if not lease.vote or lease.goes_on():
            return True
        self.quit()
        lease.finish()
        return False

    def leave(self) -> None:
        """Stop needing the connection; the last user to leave may end the lease."""
        lease = self._lease
        if lease is not None:
            users = lease.users
            users.discard(self._registration)
            if not users and lease.wanted:
                lease.end_if_idle()
            self._lease = None  # last: if interrupted before, `__del__` repeats it

    def quit(self) -> None:
        """Leave, but let the lease continue in any case."""
        lease = self._lease
        if lease is not None:
            lease.users.discard(self._registration)
            self._lease = None

    def __del__(self) -> None:
        if self._lease is not None:
            self.leave()


class Step(User):
    """A step of the wrapper, for as long as its frame lives."""


class Block(User):
    """A `pinned()` block, or other threads that share the wrapper.

    `change`: the change to clean up after it, because it may change the session unseen.
    """

    def __init__(self, change: Change | None, frames: Frames | None = None) -> None:
        self.change = change
        self.why = Pin("pinned", PINNED.what, frames)

    def join(self, lease: Lease) -> bool:
        if self.change is not None:
            lease.soil(self.change)
        return super().join(lease)
