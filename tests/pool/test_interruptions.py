"""An exception thrown into a thread at any bytecode does not affect other clients.

Time limits of Dramatiq and Celery, `gevent.Timeout` and Ctrl-C raise at any point. These tests
raise at each bytecode of the pool's code in turn.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Any

import pytest

from tests.support.bytecodes import Interrupted, interruption
from tests.support.pools import APP, AnyPool, Call, opened, ours, use
from tests.support.servers import Server, wait_until

SOON = 5.0  # seconds, on a busy machine; a client that is affected waits until its timeout
TIMEOUT = 8.0


def interrupted(function: Callable[[], object], at: int) -> bool:
    """Run the function in a thread; False if it ended before that bytecode."""
    thrown = []

    def work() -> None:
        try:
            with interruption(at):
                function()
        except Interrupted:
            thrown.append(True)

    Call(work).result(within=TIMEOUT + 5)
    return bool(thrown)


@pytest.fixture(autouse=True)
def _no_noise(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")


def check_that_all_come_soon(pool: AnyPool, limit: int, at: int) -> None:
    began = monotonic()
    conns = [pool.getconn(timeout=TIMEOUT) for _ in range(limit)]
    assert monotonic() - began < SOON, f"another client waits after an exception at bytecode {at}"
    for conn in conns:
        pool.putconn(conn)
    stats = pool.get_stats()
    assert stats["pool_size"] <= limit, f"at bytecode {at}"
    assert stats["requests_waiting"] == 0, f"at bytecode {at}"


def test_an_exception_in_a_checkout_or_return_affects_no_other_request(shared: Server) -> None:
    def checkout_and_return() -> None:
        conn = pool.getconn(timeout=TIMEOUT)
        pool.putconn(conn)

    with opened(ours, shared.conninfo, min_size=2, timeout=TIMEOUT) as pool:
        checked = 0
        for at in count():
            if not interrupted(checkout_and_return, at):
                break
            check_that_all_come_soon(pool, 2, at)
            checked = at
        assert checked > 50
        wait_until(lambda: shared.sessions(APP) <= 2, "the lost sessions to end")


def test_an_exception_in_the_return_of_a_changed_session_costs_nobody_else(shared: Server) -> None:
    """Such a connection is cleaned by another thread, which the return may have to start."""

    def change_and_return() -> None:
        conn: Any = pool.getconn(timeout=TIMEOUT)
        conn._pool_entry.dirty = "changed"
        pool.putconn(conn)

    def clean(_: object, dirty: str) -> bool:
        return dirty == "changed"

    with opened(ours, shared.conninfo, min_size=1, timeout=TIMEOUT, clean=clean) as pool:
        for at in count():
            went_on = interrupted(change_and_return, at)
            check_that_all_come_soon(pool, 1, at)
            if not went_on:
                break
            # Its threads live on for a while; each return has to start one.
            pool.cleaner.reset()
        assert at > 50


def test_an_exception_in_a_return_does_not_delay_the_waiting_client(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=TIMEOUT) as pool:
        for at in count():
            holding = [pool.getconn()]

            def give_back(holding: list[Any] = holding) -> None:
                pool.putconn(holding.pop())

            innocent = Call(use, pool)
            wait_until(
                lambda: pool.get_stats()["requests_waiting"] == 1, "the other client to wait"
            )
            began = monotonic()
            went_on = interrupted(give_back, at)
            innocent.result(within=TIMEOUT + 2)
            assert innocent.ended_at - began < SOON, f"it waits after bytecode {at}"
            if not went_on:
                break
        assert at > 30


def test_an_exception_in_a_wait_affects_no_other_request(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=TIMEOUT) as pool:
        for at in count():
            holding = [pool.getconn()]

            def checkout_and_return() -> None:
                conn = pool.getconn(timeout=TIMEOUT)
                pool.putconn(conn)

            victim = Call(interrupted, checkout_and_return, at)
            end = monotonic() + 0.05
            while pool.get_stats()["requests_waiting"] == 0 and monotonic() < end:
                pass
            pool.putconn(holding.pop())
            went_on = victim.result(within=TIMEOUT + 5)
            check_that_all_come_soon(pool, 1, at)
            if not went_on:
                break
        assert at > 100


def test_a_suspect_is_still_one_after_an_exception_in_its_checkout(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=TIMEOUT) as pool:
        seen = 0
        held: list[Any] = []
        for at in count():
            pool.putconn(pool.getconn())
            suspects = set(pool.entries)
            pool.placement.suspect_all()
            if not interrupted(lambda: held.append(pool.getconn()), at):
                break
            idle = suspects & {conn._pool_entry for conn in tuple(pool.idle)}
            assert all(entry.idle_since < 0 for entry in idle), f"at bytecode {at}"
            seen += len(idle)
        pool.putconn(held.pop())
        assert seen > 20


def test_an_exception_in_the_first_use_of_a_pool_affects_no_other_request(shared: Server) -> None:
    """The first use starts threads."""
    gc.collect()
    for at in count():
        pool = ours(shared.conninfo, min_size=1, max_size=2, timeout=TIMEOUT)

        def first_use(pool: AnyPool = pool) -> None:
            pool.open()
            pool.putconn(pool.getconn(timeout=TIMEOUT))

        went_on = interrupted(first_use, at)
        try:
            pool.open()
            check_that_all_come_soon(pool, 2, at)
        finally:
            pool.close()
        if not went_on:
            break
    assert at > 100
    wait_until(lambda: not connectors(), "the threads that connect to end")


def connectors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.endswith("connector")]
