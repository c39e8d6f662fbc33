"""What needs the session of each connection that is checked out. For reports: it never waits."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from psycopg.pq import TransactionStatus

from abs_orm_app.pool.entry import Entry, Holder, Pin

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

TRANSACTION = Pin("transaction", "a transaction")
UNUSED = Pin("", "nothing")  # nothing needs the session, but its holder keeps it
_IN_TRANSACTION = frozenset({TransactionStatus.INTRANS, TransactionStatus.INERROR})


def holder_of(pool: HardenedPool, entry: Entry) -> Holder:
    """Who has the connection of an entry, and what needs its session."""
    pin = _look(pool, entry)
    return entry.holder(unused=True) if pin is UNUSED else entry.holder(pin)


def count_pins(pool: HardenedPool) -> tuple[dict[str, int], int]:
    """How many connections are pinned, by the reason; and how many are kept and not needed."""
    pins = [_look(pool, entry) for entry in list(pool.in_use)]
    reasons = Counter(pin.reason for pin in pins if pin is not None and pin is not UNUSED)
    return dict(reasons), sum(pin is UNUSED for pin in pins)


def _look(pool: HardenedPool, entry: Entry) -> Pin | None:
    conn = entry.weak()
    if conn is not None and pool.pin_of is not None and (pin := pool.pin_of(conn)) is not None:
        return pin
    return TRANSACTION if entry.pgconn.transaction_status in _IN_TRANSACTION else None
