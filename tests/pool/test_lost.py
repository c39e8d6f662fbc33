"""No slot is lost when threads, tasks and wrappers end, nor by exceptions at any point."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import random
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest

from abs_orm_app.pool import threads
from abs_orm_app.pool.entry import AnyConnection
from abs_orm_app.pool.housekeeping import THREAD
from abs_orm_app.pool.pool import HardenedPool
from tests.support.pools import (
    APP,
    LATE,
    AnyPool,
    Call,
    MakePool,
    compared_with_stock,
    give_back,
    opened,
    ours,
    pid,
    uncollected,
    use,
)
from tests.support.servers import Server, wait_until


@compared_with_stock("a connection that is not returned takes its slot with it, for good")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_threads_that_end_with_a_connection_give_their_slots_back(
    shared: Server, make: MakePool
) -> None:
    with opened(make, shared.conninfo, min_size=2, max_size=4, timeout=LATE) as pool:
        for _ in range(4):
            thread = threading.Thread(target=pool.getconn)
            thread.start()
            thread.join(5)
        for _ in range(4):
            use(pool)
        wait_until(lambda: shared.sessions(APP) <= 4, "the lost sessions to end")


@compared_with_stock("a connection that is not returned takes its slot with it, for good")
def test_a_tasks_connection_comes_back_when_the_task_is_cancelled(
    shared: Server, make: MakePool
) -> None:
    async def hold(pool: AnyPool) -> None:
        _conn = await asyncio.to_thread(pool.getconn)
        await asyncio.sleep(60)

    async def cancel_one(pool: AnyPool) -> None:
        task = asyncio.create_task(hold(pool))
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with opened(make, shared.conninfo, min_size=1, timeout=LATE) as pool:
        asyncio.run(cancel_one(pool))
        use(pool)


def test_a_reference_cycle_is_collected_when_the_pool_is_exhausted(shared: Server) -> None:
    class Wrapper:
        """A reference cycle like Django's, which only the garbage collector frees."""

        def __init__(self, pool: AnyPool) -> None:
            self.myself = self
            self.conn = pool.getconn()

    with opened(ours, shared.conninfo, min_size=1, timeout=20) as pool, uncollected():
        Wrapper(pool)
        use(pool)


def test_a_leaked_connection_is_replaced_without_a_waiting_client(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=2) as pool:
        lost = pid(pool.getconn())
        wait_until(lambda: pool.get_stats()["pool_available"] == 2, "the place to be filled")
        assert isinstance(pool, HardenedPool)
        assert not pool.holders()
        assert lost not in {pid(conn) for conn in pool.idle}


def test_the_warning_names_the_code_that_leaked_a_connection(
    shared: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def lose_one(pool: AnyPool) -> None:
        pool.getconn()

    with opened(ours, shared.conninfo, min_size=1, timeout=20, leak_seconds=60) as pool:
        lose_one(pool)
        use(pool)
        wait_until(lambda: "in lose_one" in caplog.text, "the warning")
    assert "test_lost.py" in caplog.text


def test_without_tracing_the_warning_says_how_to_find_the_code(
    shared: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=20) as pool:
        pool.getconn()
        use(pool)
        wait_until(lambda: "DB_POOL_LEAK_SECONDS" in caplog.text, "the warning")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if "has held a connection for" in message]


def test_a_connection_held_too_long_is_warned_about_once_with_the_lines_that_took_it(
    shared: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(ours, shared.conninfo, min_size=1, leak_seconds=0.4) as pool:
        conn = pool.getconn()
        wait_until(lambda: bool(warnings_of(caplog)), "the warning")
        sleep(1)
        pool.putconn(conn)
    (warning,) = warnings_of(caplog)
    assert "in test_a_connection_held_too_long_is_warned_about_once_with_the_lines" in warning
    assert "\n" not in warning


def hold_all(pool: AnyPool) -> list[AnyConnection]:
    return [pool.getconn() for _ in range(12)]


def test_of_holders_at_the_same_line_one_is_named_and_the_others_are_counted(
    shared: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abs_orm_app.pool.leaks.INTERVAL", 60.0)
    with opened(ours, shared.conninfo, min_size=13, leak_seconds=0.4) as pool:
        for _ in range(5):
            conns = hold_all(pool)
            other = pool.getconn()
            wait_until(lambda: len(warnings_of(caplog)) >= 2, "a warning of each place")
            sleep(0.6)
            give_back(pool, (*conns, other))
    first, second = sorted(warnings_of(caplog), key=lambda text: "more from" not in text)
    assert "in hold_all" in first
    assert re.search(r"\), and \d+ more from the same place\. Called from .*test_lost\.py", first)
    assert "more from the same place" not in second


def test_a_place_is_named_again_after_the_interval(
    shared: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abs_orm_app.pool.leaks.INTERVAL", 0.2)
    with opened(ours, shared.conninfo, min_size=12, leak_seconds=0.4) as pool:
        for number in (1, 2):
            conns = hold_all(pool)
            # The first look may come before the last of the twelve is old enough.
            wait_until(
                lambda n=number: sum("in hold_all" in text for text in warnings_of(caplog)) >= n,  # type: ignore[misc]
                "the warning",
            )
            give_back(pool, conns)


@pytest.mark.parametrize("is_pythons", [False, True])
def test_a_line_of_python_is_named_where_the_project_has_none(
    shared: Server, caplog: pytest.LogCaptureFixture, is_pythons: bool
) -> None:
    with (
        opened(ours, shared.conninfo, min_size=1, leak_seconds=0.4) as pool,
        ThreadPoolExecutor(1) as executor,
    ):
        conn = executor.submit(pool.getconn if is_pythons else lambda: pool.getconn()).result(20)
        wait_until(lambda: bool(warnings_of(caplog)), "the warning")
        pool.putconn(conn)
    (warning,) = warnings_of(caplog)
    assert ("concurrent" in warning) is is_pythons
    if not is_pythons:
        assert "Called from" not in warning  # the thread's other lines are Python's
        assert "taken at" in warning
        assert "in <lambda>" in warning


def test_holders_are_named_with_their_threads_the_longest_first(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=2) as pool:
        assert isinstance(pool, HardenedPool)
        first = pool.getconn()
        sleep(0.05)
        call = Call(pool.getconn)
        second = call.result(within=20)
        holders = pool.holders()
        assert [holder.pid for holder in holders] == [
            first.info.backend_pid,
            second.info.backend_pid,
        ]
        assert holders[0].thread == "MainThread"
        assert holders[1].thread == call.name
        assert holders[0].seconds > holders[1].seconds
        pool.putconn(first)
        pool.putconn(second)
        assert pool.holders() == []


def test_ctrl_c_during_a_checkout_leaks_nothing(shared: Server) -> None:
    with opened(ours, shared.conninfo, min_size=1, timeout=20) as pool:
        held = pool.getconn()
        main = threading.get_ident()

        def interrupt() -> None:
            wait_until(lambda: pool.get_stats()["requests_waiting"] == 1, "the checkout to wait")
            signal.pthread_kill(main, signal.SIGINT)

        Call(interrupt)
        # The suite ignores this signal if a shell started it in the background.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                pool.getconn()
        finally:
            signal.signal(signal.SIGINT, handler)
        assert pool.get_stats()["requests_waiting"] == 0
        pool.putconn(held)
        use(pool)


class Interrupted(BaseException):
    """Thrown into threads at any point, like the soft time limit of a task server."""


def throw(error: type[BaseException], thread: threading.Thread | threads.Running) -> None:
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(error)
    )


def test_exceptions_thrown_into_a_checkout_leak_nothing(shared: Server) -> None:
    stop = threading.Event()

    def work(pool: AnyPool) -> None:
        while not stop.is_set():
            try:
                conn = pool.getconn()
                try:
                    sleep(0.0005)
                finally:
                    pool.putconn(conn)
            except (Interrupted, ValueError, AttributeError):
                # Nobody repeats an interrupted return, so drop the connection.
                conn = None

    with opened(ours, shared.conninfo, min_size=2, max_size=4, timeout=5) as pool:
        calls = [Call(work, pool) for _ in range(8)]
        for _ in range(400):
            throw(Interrupted, random.choice(calls))  # noqa: S311
            sleep(0.003)
        stop.set()
        for call in calls:
            call.join(10)
            assert not call.is_alive()
        gc.collect()
        conns = [pool.getconn(timeout=10) for _ in range(4)]
        wait_until(lambda: shared.sessions(APP) <= 4, "the lost sessions to end")
        give_back(pool, conns)
        assert pool.get_stats()["pool_size"] <= 4
        assert pool.get_stats()["requests_waiting"] == 0


def housekeepers() -> list[threads.Running]:
    return threads.running(THREAD)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_housekeeping_thread_is_started_again_when_it_has_died(
    shared: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(ours, shared.conninfo, min_size=1, max_size=3, max_idle=0.5) as pool:
        (thread,) = housekeepers()
        throw(SystemExit, thread)
        conns = [pool.getconn() for _ in range(3)]
        wait_until(lambda: thread not in housekeepers(), "the thread to end")
        give_back(pool, conns)
        assert "housekeeping thread" in caplog.text
        wait_until(lambda: shared.sessions(APP) == 1, "the overflow to be closed")


def test_idle_pools_share_one_thread(shared: Server) -> None:
    wait_until(lambda: not housekeepers(), "the thread of the pools before")
    with (
        opened(ours, shared.conninfo, min_size=3) as pool,
        opened(ours, shared.conninfo, min_size=3) as other,
    ):
        use(pool)
        use(other)
        wait_until(lambda: len(threads.running()) == 1, "the connectors to end")
        assert housekeepers() == threads.running()
    wait_until(lambda: not housekeepers(), "the thread to end with the last pool")
