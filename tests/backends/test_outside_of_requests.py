"""Threads outside of a request, and servers whose requests never end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import BytesIO
from time import monotonic, sleep
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import Error, OperationalError, connections, transaction
from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client, RequestFactory, override_settings
from django.urls import path, resolve

from abs_orm_app.backends import requests
from tests.support.databases import ALIAS, ONE, Database, ask, entry, held
from tests.support.pools import Call, staying
from tests.support.servers import Server, wait_until

JOBS, THREADS = 240, 12
ELSEWHERE = 0.1  # seconds of a job, beside its query


def test_busy_threads_do_not_starve_others(database: Database, release: str) -> None:
    """As those of FastAPI, APScheduler, an executor: each job queries, and works elsewhere."""
    if release == "transaction":
        pytest.skip("they hold nothing between two queries")
    wrapper = database(OPTIONS={"pool": {"min_size": 4, "max_size": 4, "timeout": 10}})
    wrapper.pool.open(wait=True)
    waited: list[float] = []
    failed: list[Error] = []

    def job(_: int) -> None:
        began = monotonic()
        try:
            ask(connections[ALIAS])
        except Error as error:
            failed.append(error)
        waited.append(monotonic() - began)
        sleep(ELSEWHERE)

    with ThreadPoolExecutor(THREADS) as executor:
        list(executor.map(job, range(JOBS)))
    assert failed == []
    assert len(waited) == JOBS
    # A third of a second by turns. A starved one waits until four have done all jobs: six seconds.
    assert max(waited) < 4.0


def test_the_error_outside_of_a_request_says_nothing_of_one(database: Database) -> None:
    wrapper = database(OPTIONS={"pool": {"min_size": 2, "max_size": 2, "timeout": 1}})
    block = partial(transaction.atomic, ALIAS)
    with (
        staying(lambda: ask(connections[ALIAS]), 2, block),
        pytest.raises(OperationalError, match="all 2 connections are in use") as caught,
    ):
        ask(wrapper)
    assert "pinned by a transaction" in str(caught.value)
    assert "request ends" not in str(caught.value)


LEFT = {
    "query": "SELECT 1",
    "setting": "SET app.tenant = '7'",
    "lock": "SELECT pg_advisory_lock(7)",
    "transaction": "BEGIN",
}


@pytest.mark.parametrize("statement", LEFT.values(), ids=LEFT)
def test_what_a_thread_leaves_behind_comes_back_at_its_end_and_clean(
    database: Database, release: str, statement: str
) -> None:
    """As where a web server cancels a request, and `request_finished` with it."""
    wrapper = database(OPTIONS=ONE)
    left: list[Any] = []

    def work() -> None:
        request_started.send(sender=None)
        own: Any = connections[ALIAS]
        left.append(own)  # asgiref keeps it, too
        ask(own, statement)

    Call(work).result(within=20)
    wait_until(lambda: held(wrapper) == 0, "the connection", 5)
    assert ask(wrapper, "SELECT current_setting('app.tenant', true)") in (None, "")
    assert ask(wrapper, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    assert wrapper.pool.statistics.connects == 1


FIRST = """
import sys, django
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from django.conf import settings
from django.core.signals import request_finished, request_started
settings.configure(DATABASES={"default": %r}, INSTALLED_APPS=["abs_orm_app"])
django.setup()
from django.db import connection
request_started.send(None)
connection.cursor().execute("SELECT 1")
with ThreadPoolExecutor(1) as executor:
    error = executor.submit(lambda: connection.cursor().execute("SELECT 1")).exception()
sys.exit("couldn't get a connection" not in str(error))
"""


def test_the_first_request_of_a_process_keeps_its_connection(shared: Server) -> None:
    pool = {"min_size": 1, "max_size": 1, "timeout": 0.5}
    script = FIRST % entry(shared, OPTIONS={"pool": pool})
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


class Listening:
    """A receiver of a signal, called before those of the engine, which the project has loaded
    later.
    """

    def __init__(self, signal: Signal, receiver: Callable[..., object]) -> None:
        self.signal, self.receiver = signal, receiver

    def __enter__(self) -> None:
        self.signal.connect(self.receiver)
        self.signal.receivers.insert(1, self.signal.receivers.pop())  # Django's own is the first

    def __exit__(self, *_: object) -> None:
        self.signal.disconnect(self.receiver)


def test_what_a_receiver_queries_when_the_request_ends_starves_nobody(mounted: Any) -> None:
    with (
        Listening(request_finished, lambda **_: ask(connections[ALIAS])),
        staying(lambda: request(closes=True), 4),
    ):
        check_is_served(mounted)


def test_a_request_of_the_test_client_outside_of_a_request_keeps_nothing(mounted: Any) -> None:
    def work() -> None:
        Client().get("/stream/")  # nobody reads it, so it does not end
        ask(connections[ALIAS])

    with staying(work, 4):
        check_is_served(mounted)


@pytest.mark.usefixtures("_ends_again")
def test_a_request_of_the_test_client_does_not_end_the_one_it_is_part_of(
    database: Database, release: str
) -> None:
    if release == "transaction":
        pytest.skip("a request keeps nothing")
    wrapper = database(OPTIONS={"pool": {"min_size": 1, "max_size": 1, "timeout": 1}})

    def work() -> None:
        request_started.send(sender=WSGIHandler)
        Client().get("/nothing/")
        ask(connections[ALIAS])
        with pytest.raises(OperationalError, match="until the request ends"):
            Call(lambda: ask(connections[ALIAS])).result(within=20)
        request_finished.send(sender=WSGIHandler)

    with override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], MIDDLEWARE=[]):
        Call(work).result(within=30)
    assert held(wrapper) == 0


@pytest.mark.parametrize("path", ["/another/", "/another/async/"])
@pytest.mark.parametrize("is_view", [True, False], ids=["view", "task"])
def test_a_request_made_in_its_own_process_does_not_end_a_block_in_silence(
    mounted: Any, path: str, is_view: bool
) -> None:
    """As with httpx.WSGITransport and ASGITransport. Django closes the connection, and what comes
    next in the block fails, as in the stock engine: it would be committed, and what was before not.
    """
    if is_view:
        Call(lambda: request(closes=True, path=path)).result(within=30)
    else:
        Call(lambda: resolve(path).func(HttpRequest())).result(within=30)
    assert held(mounted) == 0


# Requests that never end


def view(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(ask(connections[ALIAS])))


def stream(_request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(str(ask(connections[ALIAS])) for _ in range(9))


def change(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(ask(connections[ALIAS], "SELECT set_config('app.tenant', '7', false)"))


def ask_another_view(_request: HttpRequest) -> HttpResponse:
    with transaction.atomic(ALIAS):
        ask(connections[ALIAS])
        with pytest.raises(ValueError, match="Server Error"):
            request(closes=True)
        with pytest.raises(Error, match="atomic block"):
            ask(connections[ALIAS])
    return HttpResponse("1")


def ask_async_application(_request: HttpRequest) -> HttpResponse:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    sent: list[Mapping[str, Any]] = []

    body = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in body:
            return message
        await asyncio.sleep(30)  # the client stays
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    with transaction.atomic(ALIAS):
        ask(connections[ALIAS])
        async_to_sync(ASGIHandler())(scope, receive, send)
        assert sent[0]["status"] == 500
        with pytest.raises(Error, match="atomic block"):
            ask(connections[ALIAS])
    return HttpResponse("1")


urlpatterns = [
    path("", view),
    path("stream/", stream),
    path("change/", change),
    path("another/", ask_another_view),
    path("another/async/", ask_async_application),
]


@pytest.fixture
def _ends_again() -> Iterator[None]:
    """A process whose server has not served yet."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    requests._ending.clear()
    requests.unending.clear()
    requests._said.clear()
    requests.thread.__dict__.update(in_request=False, unended=0)


def request(*, closes: bool, start: Callable[..., None] = lambda *_: None, path: str = "/") -> None:
    """As a WSGI server does it; starlette's WSGIMiddleware does not close the response."""
    environ = RequestFactory(SERVER_NAME="localhost").get(path).environ
    environ["wsgi.input"] = BytesIO()
    handler: Any = WSGIHandler()
    response = handler(environ, start)
    assert int(b"".join(response)) > 0
    if closes:
        response.close()


def check_is_served(mounted: Any) -> None:
    """A query gets a connection although the threads that have queried go on."""
    began = monotonic()
    assert ask(mounted)
    assert monotonic() - began < 5.0


@pytest.fixture
def mounted(database: Database) -> Iterator[Any]:
    wrapper = database(OPTIONS={"pool": {"min_size": 4, "max_size": 4, "timeout": 20}})
    with override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], MIDDLEWARE=[]):
        yield wrapper


@pytest.mark.usefixtures("_ends_again")
@pytest.mark.parametrize("beside", [False, True], ids=["", "beside some that end"])
def test_requests_that_never_end_are_said_once_and_starve_nobody(
    mounted: Any, caplog: pytest.LogCaptureFixture, beside: bool
) -> None:
    if beside:
        Call(lambda: request(closes=True)).result(within=30)
    failed = []

    def one(_: int) -> None:
        try:
            request(closes=False)
        except OperationalError as error:
            failed.append(error)

    executor = ThreadPoolExecutor(THREADS)
    list(executor.map(one, range(100)))
    assert failed == []
    assert caplog.text.count("does not call close() on Django's responses") == 1
    assert held(mounted) <= 4
    # The threads live on, and a request that ends has a connection at once.
    assert Call(lambda: ask(connections[ALIAS])).result(within=30)
    executor.shutdown()


@pytest.mark.usefixtures("_ends_again")
@pytest.mark.parametrize("path", ["/", "/change/"])
@pytest.mark.parametrize("beside", [False, True], ids=["", "beside some that end"])
def test_the_first_requests_of_threads_starve_nobody_if_they_never_end(
    mounted: Any, beside: bool, path: str
) -> None:
    """As a server does with a thread for each: none of them begins another request."""
    if beside:
        Call(lambda: request(closes=True)).result(within=30)
    began = monotonic()
    with staying(lambda: request(closes=False, path=path), 8):
        wait_until(lambda: held(mounted) == 0, "the connections")
        check_is_served(mounted)
        assert monotonic() - began < 5.0


@pytest.mark.usefixtures("_ends_again")
def test_a_stream_that_is_being_read_is_no_request_that_is_over(mounted: Any, release: str) -> None:
    if release == "transaction":
        pytest.skip("a request keeps nothing")
    environ = RequestFactory(SERVER_NAME="localhost").get("/stream/").environ
    environ["wsgi.input"] = BytesIO()
    handler: Any = WSGIHandler()
    pids = set()

    def work() -> None:
        response = handler(environ.copy(), lambda *_: None)
        for pid in response:
            gc.collect()
            pids.add(pid)
        response.close()

    Call(work).result(within=30)
    assert len(pids) == 1
    assert held(mounted) == 0


@pytest.mark.usefixtures("_ends_again")
def test_threads_whose_requests_never_end_hold_nothing_at_rest(mounted: Any) -> None:
    def two() -> int:
        request(closes=False)
        request(closes=False)
        return held(mounted)

    with staying(lambda: request(closes=False)):
        assert Call(two).result(within=30) == 0


@pytest.mark.usefixtures("_ends_again")
@pytest.mark.parametrize("first", [True, False])
def test_a_response_that_never_starts_is_no_sign_of_requests_that_never_end(
    mounted: Any, caplog: pytest.LogCaptureFixture, first: bool
) -> None:
    """As gunicorn refuses a wrong header; or a time limit ends a view."""

    def refuse(*_: object) -> None:
        raise ValueError("an invalid header")

    def work() -> None:
        if not first:
            request(closes=True)
        with pytest.raises(ValueError, match="header"):
            request(closes=True, start=refuse)
        for _ in range(2):
            request(closes=True)

    Call(work).result(within=30)
    assert not requests.unending
    assert ("close()" in caplog.text) == first
    assert held(mounted) == 0


@pytest.mark.usefixtures("_ends_again")
def test_what_a_server_refuses_again_and_again_takes_no_connection_from_other_requests(
    mounted: Any, release: str
) -> None:
    """A visitor may cause it, in a server that ends its requests."""
    if release == "transaction":
        pytest.skip("a request keeps nothing")

    def refuse(*_: object) -> None:
        raise ValueError("an invalid header")

    def visit() -> None:
        with suppress(ValueError):
            request(closes=True, start=refuse)
        gc.collect()

    def work() -> None:
        request(closes=True)
        for _ in range(3):
            visit()

    request_started.send(sender=WSGIHandler)
    ask(mounted)
    Call(work).result(within=30)
    assert held(mounted) == 1
    request_finished.send(sender=WSGIHandler)
    assert held(mounted) == 0


@pytest.mark.usefixtures("_ends_again")
def test_requests_that_never_end_are_said_once_for_all_threads(
    mounted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The number of a thread that has noticed it may be another one's later."""
    request(closes=False)
    request(closes=False)
    request(closes=True)
    for _ in range(3):
        request(closes=False)
    assert caplog.text.count("does not call close()") == 1
    request(closes=True)
    assert held(mounted) == 0


WITHOUT_POLL = """
import select
del select.poll  # as eventlet does
import django
from django.conf import settings
settings.configure(DATABASES={"default": %r}, INSTALLED_APPS=["abs_orm_app"])
django.setup()
from django.db import connection
from abs_orm_app.backends import release
from time import sleep
for seconds in (0.0, 0.6):  # after so long, the pool pings
    sleep(seconds)
    connection.cursor().execute("SELECT set_config('app.tenant', '7', false)")
    release()
connection.pool.close()
"""


def test_a_package_that_removes_poll_leaves_a_pool_that_works(shared: Server) -> None:
    pool = {"min_size": 1, "max_size": 1, "timeout": 5}
    script = WITHOUT_POLL % entry(shared, OPTIONS={"pool": pool})
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stderr == ""
