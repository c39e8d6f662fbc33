"""A server that is further away than it is: through a proxy that holds back what it forwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter

import psycopg

from tests.support.servers import Server

SAMPLES = 200


@contextmanager
def distant(server: Server, round_trip: float) -> Iterator[int]:
    """A port from which a round trip to the server takes so many seconds more.

    The proxy is a process of its own, so that it waits for none of ours.
    """
    command = [sys.executable, "-m", "tests.support.proxy", str(server.port), str(round_trip / 2)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as proxy:
        assert proxy.stdout is not None
        try:
            yield int(proxy.stdout.readline())
        finally:
            proxy.kill()


def through(port: int, server: Server) -> str:
    """The server's URL, by way of another port."""
    return server.tcp_url.replace(f":{server.port}/", f":{port}/")


def measure_round_trip(server: Server, port: int) -> float:
    """Median seconds of a `SELECT 1` through the port."""
    times = []
    with psycopg.connect(server.tcp_conninfo, port=port, autocommit=True) as connection:
        for _ in range(SAMPLES):
            began = perf_counter()
            connection.execute("SELECT 1")
            times.append(perf_counter() - began)
    return median(times)
