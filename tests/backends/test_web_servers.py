"""gunicorn and uvicorn as real processes: 30 connections serve 200 requests at the same time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.pools import Call
from tests.support.processes import DEADLINE, GUNICORN, UVICORN, Watch, Web, states, web_server
from tests.support.proxy import Proxy
from tests.support.servers import Server, wait_until
from tests.support.system import needs_gevent

LIMIT = 30  # the default: 20 and an overflow of 10
REQUESTS = 200
WITHOUT_QUERY = "/slow/?ms=none"

GTHREAD = ("--worker-class=gthread", "--threads=60")
GEVENT = ("--worker-class=gevent",)

# Opens the pool in the master before it forks the workers.
PRELOAD = """
import json
preload_app = True
def pre_fork(server, worker):
    from django.db import connection
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        print(json.dumps(cursor.fetchone()[0]), flush=True)
"""
# Where Django is loaded before the fork, gevent must patch before that.
PRELOAD_GEVENT = "from gevent import monkey; monkey.patch_all()" + PRELOAD

# Says what is in use, in a worker that serves nobody.
REPORT = """
import threading, time
def post_worker_init(worker):
    from django.db import connection
    def report():
        while True:
            print(len(connection.pool.holders()), flush=True)
            time.sleep(0.1)
    threading.Thread(target=report, daemon=True).start()
"""


def url_through(proxy: Proxy, server: Server) -> str:
    return server.tcp_url.replace(f":{server.port}/", f":{proxy.port}/")


def succeed(answers: list[str]) -> bool:
    return all(answer.startswith("HTTP/1.1 200") for answer in answers)


def check_that_the_connections_serve(web: Web, server: Server, view: str = "slow") -> None:
    with Watch(server) as watch:
        answers = web.get([f"/{view}/?ms=100"] * REQUESTS)
    assert succeed(answers), set(answers)
    assert watch.most <= LIMIT
    wait_until(lambda: states(server).keys() == {"idle"}, "the connections to be returned")
    # All connections can be in use at the same time: each one was returned.
    with Watch(server) as watch:
        held = Call(web.get, [f"/{view}/?ms=60000"] * (LIMIT + 5))
        wait_until(lambda: watch.most_active >= LIMIT, f"{LIMIT} queries at the same time")
    assert watch.most == watch.most_active == LIMIT
    wait_until(lambda: server.cancel() == 0 and not held.is_alive(), "the requests to end")
    assert len(held.result(DEADLINE)) == LIMIT + 5


@pytest.mark.parametrize(
    "worker",
    [pytest.param(GTHREAD, id="gthread"), pytest.param(GEVENT, id="gevent", marks=needs_gevent)],
)
def test_under_gunicorn_30_connections_serve_200_requests(
    server: Server, worker: tuple[str, ...]
) -> None:
    with web_server(GUNICORN, server, *worker) as web:
        check_that_the_connections_serve(web, server)


@pytest.mark.parametrize("view", ["slow", "async"])
def test_under_uvicorn_30_connections_serve_200_requests(
    server: Server, view: str, release: str
) -> None:
    with web_server(UVICORN, server, DB_POOL_RELEASE=release) as web:
        check_that_the_connections_serve(web, server, view)


def test_under_uvicorn_clients_that_hang_up_leak_no_connection(server: Server) -> None:
    with web_server(UVICORN, server) as web:
        for _ in range(3):
            web.hang_up_on(["/slow/?ms=100"] * 2 * LIMIT, after=0.1)
        wait_until(lambda: "active" not in states(server), "the queries to end")
        check_that_the_connections_serve(web, server)


def test_under_gunicorns_asgi_worker_clients_that_hang_up_leave_nothing_in_use(
    server: Server, tmp_path: Path
) -> None:
    """It cancels such a request after a grace period, and Django's request_finished with it."""
    file = tmp_path / "gunicorn.conf.py"
    file.write_text(REPORT)
    command = (*GUNICORN[:-1], "abs_project.asgi:application")
    options = ("--worker-class=asgi", "--asgi-disconnect-grace-period=1", f"--config={file}")
    with web_server(command, server, *options, DB_POOL_SIZE="4", DB_MAX_OVERFLOW="0") as web:
        web.hang_up_on(["/slow/?ms=2000"] * 4, after=0.5)
        wait_until(lambda: web.program.output.splitlines()[-1] == "4", "the queries")
        wait_until(lambda: "active" not in states(server), "the queries to end")
        began = time.monotonic()
        wait_until(lambda: web.program.output.splitlines()[-1] == "0", "the connections", 20)
        assert time.monotonic() - began < 5.0  # about half a second


@pytest.mark.parametrize(
    ("worker", "config"),
    [
        pytest.param(GTHREAD, PRELOAD, id="gthread"),
        pytest.param(GEVENT, PRELOAD_GEVENT, id="gevent", marks=needs_gevent),
    ],
)
def test_under_gunicorn_workers_do_not_use_a_pool_opened_before_the_fork(
    server: Server, tmp_path: Path, worker: tuple[str, ...], config: str
) -> None:
    file = tmp_path / "gunicorn.conf.py"
    file.write_text(config)
    options = (*worker, "--workers=2", f"--config={file}", "--log-level=warning")
    # With the delay, the master forks while most of its connections are being opened.
    with (
        Proxy(server.port, delay=0.03) as proxy,
        web_server(GUNICORN, server, *options, DATABASE_URL=url_through(proxy, server)) as web,
    ):
        answers = web.get(["/"] * REQUESTS)
        assert succeed(answers), set(answers)
        theirs = {json.loads(answer.partition("\n")[2])["pid"] for answer in answers}
        masters = {json.loads(line) for line in web.program.output.splitlines()}
        assert len(masters) == 1
        assert not theirs & masters
        wait_until(lambda: states(server).keys() == {"idle"}, "the connections to be returned")
        errors = web.program.stop().errors.splitlines()
    # On a busy machine a request may wait, and the pool says so.
    assert [line for line in errors if not line.startswith("pool 'default': ")] == []


@contextmanager
def a_request_waits(web: Web) -> Iterator[list[str]]:
    """Send a request in a thread; the list has its answer at the end of the block."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.extend(web.get(["/"])), daemon=True)
    thread.start()
    yield answers
    thread.join()


def check_that_others_are_served(web: Web) -> None:
    began = time.monotonic()
    answers = web.get([WITHOUT_QUERY] * 10)
    assert all(answer.startswith("HTTP/1.1 400") for answer in answers), answers
    assert time.monotonic() - began < 20  # the requests that wait give up after 30 s


@needs_gevent
def test_under_gevent_a_waiting_checkout_does_not_block_other_requests(
    server: Server, release: str
) -> None:
    options = {"DB_POOL_SIZE": "1", "DB_MAX_OVERFLOW": "0", "DB_POOL_TIMEOUT": "30"}
    options["DB_POOL_RELEASE"] = release
    with web_server(GUNICORN, server, *GEVENT, **options) as web:
        time.sleep(0.6)  # after that long, the pool pings
        with server.suspended(), a_request_waits(web) as pinging, a_request_waits(web) as queueing:
            time.sleep(0.2)
            check_that_others_are_served(web)
            assert not pinging + queueing
            server.resume()
        assert succeed(pinging + queueing), pinging + queueing
