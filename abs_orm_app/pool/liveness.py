"""Is this idle connection alive? A look at its socket, and a ping that cannot hang."""

from __future__ import annotations

import select
from collections.abc import Callable
from time import monotonic
from typing import Any

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus

# After this many reads that each returned data, a peer that only sends counts as dead.
MAX_READS = 100


def make_poller(conn: psycopg.Connection[Any]) -> select.poll:
    """Return a poller for what the server sends on `conn`; `poller.poll(0)` costs a microsecond.

    Each connection keeps its own, because making one costs more than polling.
    """
    poller = select.poll()
    poller.register(conn.pgconn.socket, select.POLLIN)
    return poller


def has_ended(conn: psycopg.Connection[Any], poll: Callable[[float], object]) -> bool:
    """Read what an idle connection was sent; True if the server has closed it. Never waits."""
    try:
        for _ in range(MAX_READS):
            if not poll(0):
                return False
            conn.pgconn.consume_input()
    except psycopg.Error:
        return True
    return True


def answers(conn: psycopg.Connection[Any], timeout: float) -> bool:
    """Ping the server with an empty query; True if it answers within `timeout` seconds.

    The empty query is the cheapest of the protocol: no parsing, no snapshot, no transaction.
    After False the connection cannot be used: the answer may still come.
    """
    return ask(conn, b"", timeout) is not None


def ask(conn: psycopg.Connection[Any], query: bytes, timeout: float) -> bytes | None:
    """Send a query and return the value that it selects, b"" if it selects none.

    Returns None after an error, or if no answer comes within `timeout` seconds. It uses libpq's
    non-blocking calls, so that it takes no longer than the timeout even if the server has stopped
    or the network drops all packets.
    """
    pgconn = conn.pgconn
    deadline = monotonic() + timeout
    value, failed = b"", False
    try:
        pgconn.send_query(query)
        while pgconn.flush():
            _wait(pgconn.socket, select.POLLIN | select.POLLOUT, deadline)
            pgconn.consume_input()
        while True:
            while pgconn.is_busy():
                _wait(pgconn.socket, select.POLLIN, deadline)
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                is_idle = pgconn.transaction_status == TransactionStatus.IDLE
                return value if is_idle and not failed else None
            failed = failed or result.status == ExecStatus.FATAL_ERROR
            if result.ntuples:
                value = result.get_value(0, 0) or b""
    except (psycopg.Error, TimeoutError):
        return None


def _wait(fd: int, events: int, deadline: float) -> None:
    poller = select.poll()
    poller.register(fd, events)
    if not poller.poll(max(0.0, deadline - monotonic()) * 1000):
        raise TimeoutError
