"""A resolver that hangs, as DNS does whose packets are lost: a lookup must not keep a slot of the
pool for as long as the resolver waits, which is 30 s and longer.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from time import monotonic, sleep

import psycopg
import pytest

from tests.support import names, partition
from tests.support.names import Hosts
from tests.support.partition import SERVER, Partition
from tests.support.pools import LATE, Call, opened, ours, use
from tests.support.processes import start
from tests.support.servers import Server

CONNECT_TIMEOUT = 2.0  # seconds
HUNG = 3.0  # seconds until the resolver answers again


@pytest.mark.parametrize("size", [1, 4])
def test_a_pool_works_soon_after_the_resolver_does(
    server: Server, tmp_path: Path, size: int
) -> None:
    for refusal in (partition.refusal, names.refusal):
        if reason := refusal():
            pytest.skip(reason)
    path = str(tmp_path / "hosts")
    arguments = (server.conninfo, str(server.port), path, str(size))
    with start(server, lose_the_resolver, *arguments) as running:
        result = running.wait(80)
    assert result.status == 0, result.errors
    seconds = float(result.output.splitlines()[0])
    assert seconds <= CONNECT_TIMEOUT + LATE


def lose_the_resolver(admin: str, port: str, path: str, size: str) -> None:
    """Print how long a request waits after the resolver answers again; in a process of its own."""
    directory = psycopg.conninfo.conninfo_to_dict(admin)["host"]
    hosts = Hosts(Path(path))
    hosts.set({"db": SERVER})
    with Partition(f"{directory}/.s.PGSQL.{port}") as network:
        hosts.enter(nameserver=SERVER)
        silent = socket.socket(type=socket.SOCK_DGRAM)
        silent.bind((SERVER, 53))
        conninfo = (
            f"host=db port={network.port} user=postgres dbname=postgres"
            f" connect_timeout={CONNECT_TIMEOUT:.0f}"
        )
        with opened(ours, conninfo, min_size=int(size), max_size=int(size), timeout=60) as pool:
            use(pool)
            hosts.set({})
            pool.drain()
            waiting = [Call(use, pool) for _ in range(8)]
            sleep(HUNG)
            hosts.set({"db": SERVER})
            began = monotonic()
            for call in waiting:
                call.result(within=50)
            sys.stdout.write(f"{max(call.ended_at for call in waiting) - began}\n")


def test_a_resolver_that_finds_nothing_is_an_error_to_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not of libc's, but of those that replace it."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    with (
        opened(ours, "host=db connect_timeout=2", filled=False, min_size=1, timeout=1) as pool,
        pytest.raises(psycopg.OperationalError, match="resolve host 'db'"),
    ):
        use(pool)
