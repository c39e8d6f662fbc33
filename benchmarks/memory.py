"""What a pool of idle connections costs the process that has it."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import psycopg

from benchmarks.clients import build, fill, open_plain
from benchmarks.figure import Effort, Figure, column, kilobytes, times
from benchmarks.peers import Peer
from benchmarks.worker import Worker
from tests.servers import Server

CONNECTIONS = 20


@dataclass(frozen=True)
class Memory:
    peer: str = column("")
    resident: float = column("resident memory", kilobytes)
    ratio: float = column("to ours", times)


def memory(peers: Sequence[Peer], effort: Effort) -> Figure:
    grown: dict[str, list[int]] = {p.name: [] for p in peers if p.pooled or p.name == "none"}
    with Server() as server:
        for _ in range(effort.few_rounds):
            for peer in peers:
                if peer.name in grown:
                    with Worker(peer, server.url) as worker:
                        grown[peer.name].append(worker.call(measure_growth, server.conninfo))
    ours = statistics.median(grown["ours"])
    return Figure(
        f"Memory of a pool of {CONNECTIONS}",
        "By how much the resident memory of a fresh process grows when its pool opens"
        f" {CONNECTIONS} connections; no pool: {CONNECTIONS} connections in a list.",
        [
            Memory(name, median, median / ours)
            for name, rounds in grown.items()
            for median in [statistics.median(rounds)]
        ],
    )


# In the worker


def measure_growth(conninfo: str) -> int:
    """Bytes that the process grows by, beyond the code that it needs for that."""
    psycopg.connect(conninfo).close()
    build()
    before = _resident()
    kept = [] if fill() else [open_plain() for _ in range(CONNECTIONS)]
    grown = _resident() - before
    del kept
    return grown


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)
