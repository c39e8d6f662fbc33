"""What a pool of idle connections costs the process that has it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.clients import build, fill, open_plain
from benchmarks.figure import Effort, Figure, column, kilobytes
from benchmarks.peers import Peer
from benchmarks.worker import ROOM, Worker
from tests.support.servers import Server

SMALL, LARGE = 20, 200  # connections


@dataclass(frozen=True)
class Memory:
    """Bytes of a pool of `SMALL`, and what each connection beyond that adds."""

    peer: str = column("")
    pool: float = column(f"pool of {SMALL}", kilobytes)
    further: float = column("each further connection", kilobytes)


def memory(peers: Sequence[Peer], _effort: Effort) -> Figure:
    with Server(ROOM) as server:
        rows = [_row(peer, server) for peer in peers if peer.pooled or peer.name == "none"]
    return Figure(
        "Memory of a pool",
        "By how much the resident memory (RssAnon) of a fresh process grows when its pool opens"
        " the connections; no pool: connections in a list. The first ones find room that the"
        " process had got before.",
        rows,
    )


def _row(peer: Peer, server: Server) -> Memory:
    small, large = (_grown(peer, server, size) for size in (SMALL, LARGE))
    return Memory(peer.name, small, (large - small) / (LARGE - SMALL))


def _grown(peer: Peer, server: Server, connections: int) -> int:
    with Worker(peer, server.url, DB_POOL_SIZE=str(connections)) as worker:
        return worker.call(measure_growth, server.conninfo, connections)


# In the worker


def measure_growth(conninfo: str, connections: int) -> int:
    """Bytes that so many connections cost, beyond the code that they need."""
    psycopg.connect(conninfo).close()
    build()
    before = _resident()
    kept = [] if fill() else [open_plain() for _ in range(connections)]
    grown = _resident() - before
    del kept
    return grown


def _resident() -> int:
    """Bytes of the process's own resident memory: code comes and goes as the kernel likes."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])
