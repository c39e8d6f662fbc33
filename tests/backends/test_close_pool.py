"""Where a pool is closed while threads use it, the next one does not exceed the limit."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from time import monotonic

import pytest
from django.db import connections, transaction

from abs_orm_app.pool import causes
from tests.support.databases import ALIAS, ONE, Database, ask
from tests.support.pools import LATE, Call, open_sockets, staying
from tests.support.servers import Server

LIMIT = 3
POOL = {"pool": {"min_size": LIMIT, "max_size": LIMIT, "timeout": 20}}


@contextmanager
def using() -> Iterator[None]:
    with closing(connections[ALIAS]), transaction.atomic(ALIAS):
        yield


@pytest.mark.parametrize("held", [1, LIMIT])
def test_the_next_pool_counts_the_connections_that_the_closed_one_still_has(
    shared: Server, database: Database, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    # The question whether the server answers is a socket to it, too, though no session.
    monkeypatch.setattr(causes, "ASK_AFTER", math.inf)
    wrapper = database(HOST="127.0.0.1", OPTIONS=POOL)
    most = 0

    def work() -> None:
        for _ in range(5):
            ask(connections[ALIAS], "SELECT pg_sleep(0.01)")
            connections[ALIAS].close()

    ask(wrapper)
    wrapper.close()
    with staying(lambda: ask(connections[ALIAS]), held, using):
        wrapper.close_pool()
        others = [Call(work) for _ in range(2 * LIMIT)]
        until = monotonic() + 1.5  # the next pool is filled meanwhile, as far as it can
        while monotonic() < until:
            most = max(most, open_sockets(shared))
    while any(other.is_alive() for other in others):
        most = max(most, open_sockets(shared))
        assert monotonic() - until < 20 + LATE
    for other in others:
        other.result(within=LATE)
    assert most <= LIMIT, f"{most} connections at a time, and the limit is {LIMIT}"


@pytest.mark.parametrize("closed", [1, 2, sys.getrecursionlimit() + 100])
def test_a_thread_that_does_nothing_with_its_connection_of_a_closed_pool_starves_nobody(
    database: Database, closed: int
) -> None:
    wrapper = database(OPTIONS=ONE)
    with staying(lambda: ask(connections[ALIAS])):
        for _ in range(closed):
            assert wrapper.pool  # the next one
            wrapper.close_pool()
        began = monotonic()
        assert ask(wrapper)
        assert monotonic() - began < LATE
