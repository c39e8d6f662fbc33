"""Is a connection alive that is about to be handed out? A look at its socket, or a ping."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from abs_orm_app.pool import liveness
from abs_orm_app.pool.constants import PING_AFTER
from abs_orm_app.pool.entry import AnyConnection, Entry

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

PING_TIMEOUT = 5.0  # seconds; HikariCP's validationTimeout
PING_LEAST = 0.05  # seconds; in less, a healthy connection may seem to hang


def is_alive(
    pool: HardenedPool, conn: AnyConnection, entry: Entry, now: float, deadline: float
) -> bool:
    """Look at a connection that has said something, or was idle for long. It may hang."""
    # What it said may be its last word, though its socket is not closed yet: it is pinged.
    if entry.poll(0) and liveness.has_ended(conn, entry.poll):
        pool.statistics.stale += 1
        return False
    # Half of what is left: a fresh connection, if this one hangs, needs the other half.
    allowed = min(PING_TIMEOUT, max((deadline - now) / 2, PING_LEAST))
    if pool.project_check is not None:
        passed = pool.project_check.passes(pool, conn, entry, allowed)
        pool.statistics.stale += not passed
        return passed
    if _answers(pool, conn, entry, allowed):
        return entry.expires_at > now
    pool.statistics.stale += 1
    _discard_suspects(pool)
    return False


def _answers(pool: HardenedPool, conn: AnyConnection, entry: Entry, timeout: float) -> bool:
    """Ping an idle connection, and look what its server has become."""
    if pool.placement.must_ask(entry):
        return pool.placement.answers(entry, conn, timeout)
    if not liveness.answers(conn, timeout):
        return False
    pool.placement.look(entry, conn)
    return True


def _discard_suspects(pool: HardenedPool) -> None:
    """Close the idle connections due for a ping: they hang as the one does that was pinged."""
    oldest = monotonic() - PING_AFTER
    for conn in tuple(pool.idle):
        if conn._pool_entry.idle_since < oldest and pool.idle.take(conn):
            pool.statistics.stale += 1
            pool.discard(conn)
