"""Tell whether the server answers at all, from the kernel's state of the connections in use.

For the message of a timeout: in the queue, a pool that is too small and a server that does not
answer look the same. Linux knows for each TCP connection when it last received something, and
whether the peer acknowledges what was sent to it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

LEAST = 0.5  # seconds; a shorter silence means nothing
RETRANSMITS = 2  # one may be lost by chance

# struct tcp_info of linux/tcp.h: retransmits and probes without an answer (bytes 2 and 3), then
# tcpi_last_data_recv in milliseconds (offset 52).
_TCP_INFO = struct.Struct("=2xBB48xI")


@dataclass(frozen=True)
class Line:
    """One connection in use."""

    waits: bool  # its holder waits for the server's answer
    silent: float | None  # seconds since the server last sent something; None: unknown
    unanswered: bool  # the peer does not even acknowledge what was sent


@dataclass(frozen=True)
class Silence:
    """Nothing comes back on any connection in use, for `seconds` or longer."""

    seconds: float
    unanswered: bool  # the peer acknowledges nothing: it, or the network to it, is gone


def line(pgconn: Any) -> Line:
    """Look at one connection, from any thread. Sends nothing, and never waits."""
    silent, unanswered = None, False
    waits = pgconn.transaction_status == TransactionStatus.ACTIVE
    tcp_info = getattr(socket, "TCP_INFO", None)
    with (
        suppress(psycopg.Error, OSError, struct.error),
        socket.socket(fileno=os.dup(pgconn.socket)) as twin,
    ):
        if tcp_info is not None and twin.family in (socket.AF_INET, socket.AF_INET6):
            info = twin.getsockopt(socket.IPPROTO_TCP, tcp_info, _TCP_INFO.size)
            retransmits, probes, milliseconds = _TCP_INFO.unpack(info)
            silent = milliseconds / 1000
            unanswered = probes > 0 or retransmits >= RETRANSMITS
    return Line(waits, silent, unanswered)


def look_at(pgconns: Iterable[Any]) -> list[Line]:
    """Look at connections, until one shows that the server is not silent."""
    lines = []
    for pgconn in pgconns:
        lines.append(look := line(pgconn))
        if not look.waits or look.silent is None or look.silent < LEAST:
            break
    return lines


def silence(lines: Sequence[Line], waited: float) -> Silence | None:
    """Tell if the server, and not the pool's size, is why nobody returned a connection.

    waited: seconds that a request has waited. The result is a silence only if each holder waits for
    the server's answer and has received nothing for half of that time, or if no peer acknowledges.
    """
    silent = [each.silent for each in lines if each.waits and each.silent is not None]
    if not lines or len(silent) < len(lines):
        return None
    unanswered = all(each.unanswered for each in lines)
    if min(silent) < LEAST or (min(silent) < waited / 2 and not unanswered):
        return None
    return Silence(min(silent), unanswered)
