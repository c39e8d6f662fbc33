"""Checks that an idle connection is alive and its server answers, always with a time limit."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from enum import Enum
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus

from abs_orm_app.pool.clock import monotonic
from abs_orm_app.pool.steps import Poller, Readable, Steps, run

ROUND_TRIP = 20e-6  # seconds; no server can answer in less
# A peer that still sends after this many reads counts as dead.
MAX_READS = 100
ANSWERING, SILENT, GONE = "answering", "silent", "gone"  # the results of a probe
SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # every server answers this with one byte


class Answer(Enum):
    """What came back from a ping."""

    ALIVE = "alive"
    WRONG = "wrong answer"  # this session cannot be used; that says nothing about others
    NONE = "no answer"  # in time, or the connection is broken


def make_poller(conn: psycopg.Connection[Any]) -> Any:
    """Return a poller for what the server sends on `conn`; `poller.poll(0)` costs a microsecond.

    Each connection keeps its own, because making one costs more than polling. It raises
    `RuntimeError` while another thread polls, such as the last holder's.
    """
    poller = Poller()
    poller.register(conn.pgconn.socket, select.POLLIN)
    return poller


def server_has_closed(conn: psycopg.Connection[Any], poll: Callable[[float], object]) -> bool:
    """Read what the server has sent; True if it has closed this connection. Never waits."""
    try:
        for _ in range(MAX_READS):
            if not poll(0):
                return False
            conn.pgconn.consume_input()
    except psycopg.Error:
        return True
    except RuntimeError:  # another thread polls
        return False
    return True


def ping(conn: psycopg.Connection[Any], timeout: float) -> Answer:
    return run(ping_steps(conn, timeout))


def ping_steps(conn: psycopg.Connection[Any], timeout: float) -> Steps[Answer]:
    """Ping the server with an empty query, and wait up to `timeout` seconds for its answer.

    The empty query is the cheapest of the protocol: no parsing, no snapshot, no transaction. Unless
    the result is ALIVE, the connection must not be used: the answer may still come.
    """
    pgconn = conn.pgconn
    if pgconn.transaction_status != TransactionStatus.IDLE:
        return Answer.WRONG  # it is still being used
    if (yield from _ask_steps(conn, b"", timeout)) is not None:
        return Answer.ALIVE
    ended = pgconn.status != ConnStatus.OK or pgconn.transaction_status == TransactionStatus.ACTIVE
    return Answer.NONE if ended else Answer.WRONG


def ask(conn: psycopg.Connection[Any], query: bytes, timeout: float) -> bytes | None:
    return run(_ask_steps(conn, query, timeout))


def _ask_steps(conn: psycopg.Connection[Any], query: bytes, timeout: float) -> Steps[bytes | None]:
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
            if not (yield Readable(pgconn.socket, deadline, writes=True)):
                return None
            pgconn.consume_input()
        while True:
            while pgconn.is_busy():
                if not (yield Readable(pgconn.socket, deadline)):
                    return None
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                is_idle = pgconn.transaction_status == TransactionStatus.IDLE
                return value if is_idle and not failed else None
            failed = failed or result.status == ExecStatus.FATAL_ERROR
            if result.ntuples:
                value = result.get_value(0, 0) or b""
    except psycopg.Error:
        return None


def reach(target: Any, timeout: float) -> str:
    """Probe an address: does a server answer there? Opens no session, and needs no password.

    Returns ANSWERING, SILENT or GONE.
    """
    found = GONE
    try:
        if isinstance(target, str):
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(timeout)
            peer.connect(target)
        else:
            peer = socket.create_connection(target[:2], timeout)
        with peer:
            found = SILENT
            peer.sendall(SSL_REQUEST)
            return ANSWERING if len(peer.recv(1)) == 1 else GONE
    except TimeoutError:
        return found
    except (OSError, ValueError):
        return GONE
