"""Reserved TCP ports: nobody else gets one, even while nothing listens on it."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LOCALHOST = "127.0.0.1"
# Below the range from which the kernel picks ports for outgoing connections.
PORTS = range(20000, 32000)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 that stays ours until the end of the block.

    A server that sets SO_REUSEADDR, as PostgreSQL, PgBouncer and `socket.create_server` do, can
    listen on it, stop, and listen again. Between two starts a connect is refused, and neither
    another test nor another process can reserve the same port.
    """
    with _bound_socket() as holder:
        # Set after bind(): bind() itself must fail on a port that somebody else holds.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield int(holder.getsockname()[1])


def _bound_socket() -> socket.socket:
    for port in random.sample(PORTS, 99):
        holder = socket.socket()
        with suppress(OSError):
            holder.bind((LOCALHOST, port))
            return holder
        holder.close()
    raise RuntimeError(f"found no free TCP port among {PORTS}")
