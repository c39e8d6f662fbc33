"""Check that a connection is alive before it is handed out: look at its socket, or ping it."""

from __future__ import annotations

from collections.abc import Callable
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
    """Check a connection that has something to read, or was idle for long. It may hang."""
    # The server may have sent its last message without having closed the socket yet: ping it.
    if conn.closed or (entry.poll(0) and liveness.has_ended(conn, entry.poll)):
        pool.statistics.stale += 1
        return False
    # Half of the remaining time: if this one hangs, a new connection needs the other half.
    allowed = min(PING_TIMEOUT, max((deadline - now) / 2, PING_LEAST))
    if pool.own_check is not None:
        passed = _passes(pool, conn, pool.own_check, allowed)
        pool.statistics.stale += not passed
        return passed
    if _answers(pool, conn, entry, allowed):
        return entry.expires_at > now
    pool.statistics.stale += 1
    _discard_suspects(pool)
    return False


def _passes(
    pool: HardenedPool, conn: AnyConnection, check: Callable[[AnyConnection], object], limit: float
) -> bool:
    """Call the project's own check; False if it raises, or takes longer than `limit` seconds."""
    try:
        return pool.time_limits.call(pool, conn, limit, check) and not conn.closed
    except Exception:  # any exception means: do not hand it out
        return False


def _answers(pool: HardenedPool, conn: AnyConnection, entry: Entry, timeout: float) -> bool:
    """Ping an idle connection, and look at the role of its server."""
    if pool.placement.must_ask(entry):
        return pool.placement.answers(entry, conn, timeout)
    if not liveness.answers(conn, timeout):
        return False
    pool.placement.look(entry, conn)
    return True


def _discard_suspects(pool: HardenedPool) -> None:
    """Close the idle connections that are due for a ping: they are presumed hung, too."""
    oldest = monotonic() - PING_AFTER
    for conn in list(pool.idle):
        if conn._pool_entry.idle_since < oldest and pool.idle.take(conn):
            pool.statistics.stale += 1
            pool.discard(conn)
