"""Where a pool is closed while threads use it, the next one does not exceed the limit."""

from __future__ import annotations

import math
import sys
import threading
from time import monotonic

import pytest
from django.db import connections, transaction

from abs_orm_app.pool import causes
from tests.support.databases import ALIAS, Database, ask
from tests.support.pools import LATE, Call, open_sockets
from tests.support.servers import Server

LIMIT = 3
POOL = {"pool": {"min_size": LIMIT, "max_size": LIMIT, "timeout": 20}}


class Holders:
    """Threads, each with one connection of ALIAS, until they are told to end."""

    def __init__(self, count: int) -> None:
        self._has_one, self._over = threading.Semaphore(0), threading.Event()
        self.calls = [Call(self._hold) for _ in range(count)]
        for _ in self.calls:
            assert self._has_one.acquire(timeout=20)

    def _hold(self) -> None:
        wrapper = connections[ALIAS]
        try:
            with transaction.atomic(ALIAS):
                ask(wrapper)
                self._has_one.release()
                assert self._over.wait(30)
        finally:
            wrapper.close()

    def end(self) -> None:
        self._over.set()
        for call in self.calls:
            call.result(within=20)


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
    holders = Holders(held)
    wrapper.close_pool()
    others = [Call(work) for _ in range(2 * LIMIT)]
    until = monotonic() + 1.5  # the next pool is filled meanwhile, as far as it can
    while monotonic() < until:
        most = max(most, open_sockets(shared))
    holders.end()
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
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 20}})
    has_one, over = threading.Event(), threading.Event()

    def query_and_live_on() -> None:
        ask(connections[ALIAS])
        has_one.set()
        over.wait(60)

    thread = Call(query_and_live_on)
    assert has_one.wait(20)
    for _ in range(closed):
        assert wrapper.pool  # the next one
        wrapper.close_pool()
    try:
        began = monotonic()
        assert ask(wrapper)
        assert monotonic() - began < LATE
    finally:
        over.set()
    thread.result(within=20)
