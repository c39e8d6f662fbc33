"""A process that used the pool ends at once, prints nothing, and closes its sessions."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from django.db import OperationalError, connection, transaction

from abs_orm_app.facts.active import snapshots
from abs_orm_app.pool import registry
from abs_orm_app.pool.housekeeping import observers
from abs_orm_app.pool.pool import HardenedPool
from tests.support.processes import (
    GUNICORN,
    UVICORN,
    Result,
    backend,
    program,
    run,
    states,
    web_server,
)
from tests.support.proxy import Proxy
from tests.support.servers import Server, wait_until
from tests.support.system import needs_gevent

pytestmark = pytest.mark.server({"log_min_messages": "debug1"})

# The server logs this, at debug1, when a client goes away without closing its session.
NOT_CLOSED = "unexpected EOF"
DEVELOPMENT = ("-X", "dev", "-W", "error::ResourceWarning")
AT_ONCE = 10.0  # seconds, on a busy machine; a process that hangs takes 20 s and more


# Functions that run in a process of their own


def query() -> None:
    backend()


def exit_in_an_atomic_block() -> None:
    with transaction.atomic():
        backend()
        sys.exit()


def end_in_a_transaction() -> None:
    transaction.set_autocommit(False)
    backend()


def exit_in_a_thread() -> None:
    """The threads end with the process: before that, each would rightly be said to leak."""

    def work() -> None:
        backend()
        threading.main_thread().join()
        sys.exit(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()


def end_before_a_thread() -> None:
    """The other threads begin to work when the main thread has ended."""

    def work() -> None:
        threading.main_thread().join()
        for _ in range(3):
            backend()
            connection.close()
            time.sleep(0.05)

    for _ in range(8):
        threading.Thread(target=work).start()


def query_at_exit() -> None:
    atexit.register(backend)
    backend()


def end_while_threads_query() -> None:
    """The process ends while the threads are at any point of their work."""

    def work() -> None:
        while True:
            backend()
            connection.close()

    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)


def end_while_a_thread_has_a_connection() -> None:
    holding = threading.Event()

    def work() -> None:
        backend()
        holding.set()
        time.sleep(60)

    threading.Thread(target=work, daemon=True).start()
    backend()
    assert holding.wait(10)


def run_last(function: Callable[[], object]) -> None:
    """Run at exit after the pools are closed, like a hook registered before the app's import."""
    atexit.unregister(registry.close_all)
    atexit.register(function)
    atexit.register(registry.close_all)


def run_in_thread(function: Callable[[], object]) -> None:
    """Run in a thread and wait for it, like the last export of telemetry at exit."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(20)


def query_after_the_pools() -> None:
    def work() -> None:
        backend()
        connection.close()

    run_last(work)
    backend()


def read_the_state_at_the_end() -> None:
    run_last(lambda: run_in_thread(snapshots))
    backend()


def query_in_a_thread_at_the_end() -> None:
    def work() -> None:
        with suppress(OperationalError):
            backend()

    run_last(lambda: run_in_thread(work))
    backend()


def end_while_an_observer_reads() -> None:
    """The observer holds a lock that its last call needs as well."""
    lock, inside = threading.Lock(), threading.Event()

    def observe(pool: HardenedPool) -> None:
        with lock:
            inside.set()
            time.sleep(0.3)
            pool.get_stats()

    observers.append(observe)
    backend()
    assert inside.wait(10)


def end_while_the_server_hangs(postmaster: str) -> None:
    transaction.set_autocommit(False)
    with connection.cursor() as cursor:
        cursor.execute("select pid from pg_stat_activity where backend_type = 'client backend'")
        backends = [row[0] for row in cursor.fetchall()]
    for pid in (int(postmaster), *backends):
        os.kill(pid, signal.SIGSTOP)


# The tests


def check_that_it_ended_well(result: Result, status: int = 0) -> None:
    assert not result.errors, result.errors
    assert result.status == status


def check_that_it_ended_soon(result: Result) -> None:
    check_that_it_ended_well(result)
    assert result.ended_at - float(result.output) < AT_ONCE


def check_that_every_session_was_closed(server: Server, said: str = NOT_CLOSED) -> None:
    wait_until(lambda: not states(server), "the sessions to end")
    assert said not in server.log


@pytest.mark.parametrize(
    "function",
    [
        query,
        exit_in_an_atomic_block,
        end_in_a_transaction,
        exit_in_a_thread,
        end_before_a_thread,
        query_at_exit,
        query_after_the_pools,
    ],
)
def test_a_program_ends_quietly_and_closes_every_connection(
    server: Server, function: Callable[[], None]
) -> None:
    result = run(server, function, options=DEVELOPMENT)
    check_that_it_ended_soon(result)
    check_that_every_session_was_closed(server)


def test_a_management_command_ends_quietly_and_closes_every_connection(server: Server) -> None:
    command = [sys.executable, *DEVELOPMENT, "manage.py", "migrate", "--plan"]
    with program(command, server) as running:
        result = running.wait()
    check_that_it_ended_well(result)
    check_that_every_session_was_closed(server)


def test_a_program_that_ends_waits_for_connections_that_are_being_opened(server: Server) -> None:
    with Proxy(server.port, delay=0.05) as proxy:
        url = server.tcp_url.replace(str(server.port), str(proxy.port))
        result = run(server, query, options=DEVELOPMENT, DATABASE_URL=url)
    check_that_it_ended_soon(result)
    check_that_every_session_was_closed(server)


@pytest.mark.parametrize("function", [end_while_threads_query, end_while_a_thread_has_a_connection])
def test_daemon_threads_neither_delay_the_end_nor_print_errors(
    server: Server, function: Callable[[], None]
) -> None:
    result = run(server, function)
    check_that_it_ended_soon(result)
    wait_until(lambda: not states(server), "the sessions to end")
    # The connections in use are cut off; the idle ones are closed.
    assert server.log.count(NOT_CLOSED) <= 4


@pytest.mark.parametrize(
    "function",
    [read_the_state_at_the_end, query_in_a_thread_at_the_end, end_while_an_observer_reads],
)
def test_code_that_runs_after_the_pool_is_closed_does_not_wait(
    server: Server, function: Callable[[], None]
) -> None:
    check_that_it_ended_soon(run(server, function))


def test_a_server_that_hangs_delays_the_end_by_a_few_seconds_at_most(server: Server) -> None:
    try:
        result = run(server, end_while_the_server_hangs, str(server.pid), options=DEVELOPMENT)
    finally:
        server.resume()
    check_that_it_ended_soon(result)


@pytest.mark.parametrize("worker", ["gthread", pytest.param("gevent", marks=needs_gevent)])
def test_gunicorn_closes_every_connection_at_sigterm(server: Server, worker: str) -> None:
    with web_server(GUNICORN, server, f"--worker-class={worker}", "--log-level=error") as web:
        web.get(["/slow/"] * 40)
        result = web.program.stop()
    check_that_it_ended_well(result)
    check_that_every_session_was_closed(server)


def test_uvicorn_ends_every_session_at_sigterm(server: Server) -> None:
    with web_server(UVICORN, server) as web:
        web.get(["/slow/"] * 40)
        result = web.program.stop()
    # uvicorn then kills itself with that signal, so Python runs no exit hooks.
    check_that_it_ended_well(result, status=-signal.SIGTERM)
    check_that_every_session_was_closed(
        server, f"{NOT_CLOSED} on client connection with an open transaction"
    )
