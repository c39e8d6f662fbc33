"""Asks a server that accepts no more connections over an idle one of this process's pool."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from psycopg import Error

from abs_orm_app.facts.active import current_pools
from abs_orm_app.pool.server_errors import FULL, classify

T = TypeVar("T")

STATEMENT_TIMEOUT = 2000  # ms


def is_full(error: BaseException) -> bool:
    return classify(error).problem == FULL


def ask_borrowed(alias: str, read: Callable[[Any], T]) -> T | None:
    """Return what `read` returns of such a connection; None if there is none, or it fails.

    No request waits for it meanwhile: then there is no idle connection.
    """
    pool = current_pools().get(alias)
    if pool is None or pool.closed or not pool.idle:
        return None
    with suppress(Error), pool.connection(timeout=0.1) as conn, conn.transaction():
        conn.execute(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT}")
        return read(conn)
    return None
