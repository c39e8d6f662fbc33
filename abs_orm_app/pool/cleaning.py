"""What the pool does with a connection that is returned in a transaction, or must be reset.

`cleaner.py` handles a session that was changed (`Entry.dirty`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from psycopg import ProgrammingError
from psycopg.pq import TransactionStatus

from abs_orm_app.pool import messages
from abs_orm_app.pool.connector import prepare_timeout
from abs_orm_app.pool.entry import AnyConnection

if TYPE_CHECKING:
    from abs_orm_app.pool.pool import HardenedPool

Reset = Callable[[AnyConnection], object]


def clean(pool: HardenedPool, conn: AnyConnection, reset: Reset | None) -> list[str]:
    """Roll back the transaction of a returned connection and call `reset`; close it on failure,
    and after `prepare_timeout` seconds.

    Returns what to log.
    """
    said = []

    def make_idle(conn: AnyConnection) -> None:
        status = conn.pgconn.transaction_status
        if status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            said.append(messages.rolled_back(pool.name))
            conn.rollback()
        elif status == TransactionStatus.ACTIVE:
            said.append(messages.returned_active(pool.name))
            pool.hang_up(conn)
        if reset is not None and not pool.closed and not conn.closed:
            reset(conn)
            if conn.pgconn.transaction_status != TransactionStatus.IDLE:
                raise ProgrammingError("it is left in a transaction")

    try:
        if not pool.time_limits.call(pool, conn, prepare_timeout(pool.timeout), make_idle):
            pool.hang_up(conn)
    except Exception as error:
        said.append(messages.reset_failed(pool.name, error))
        pool.hang_up(conn)
    return said
