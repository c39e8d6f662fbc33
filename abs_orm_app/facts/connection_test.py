"""Tests an alias: connects as its settings say, queries, checks out a connection."""

from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from time import perf_counter, sleep
from typing import Any

from abs_orm_app.config.address import session_options
from abs_orm_app.facts.active import ask_borrowed, is_full
from abs_orm_app.facts.connecting import (
    CONNECT_TIMEOUT,
    ERRORS,
    is_silent,
    isolated_wrapper,
    locate_timeout,
    parameters_of,
    return_unchanged,
    seconds_to_connect,
    wrapper_of,
)
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure, failure_of
from abs_orm_app.facts.pooler import PoolerFacts, read_pooler
from abs_orm_app.facts.server import ServerFacts, read_server
from abs_orm_app.facts.sessions import Fleet, read_fleet
from abs_orm_app.facts.timeout import run_with_timeout

EARLY = 5  # seconds to connect, before a test whether the server answers at all
NOTICE = 0.5  # seconds that a server takes to notice the end of a session


@dataclass(frozen=True, kw_only=True)
class ConnectionTest:
    """The result. A time is None if the test did not get that far, or there is no pool."""

    connect_ms: float | None = None  # a new connection
    query_ms: float | None = None  # SELECT 1
    checkout_ms: float | None = None  # of a connection that is idle in a pool
    failure: Failure | None = None


def probe(
    configured: Configured, seconds: float
) -> tuple[ServerFacts | Failure | None, ConnectionTest, Fleet | None]:
    """Connect, read the facts of the server, and time a query, within `seconds`.

    If the server is full, read them over an idle connection of this process's pool.
    """
    try:
        server, now, connect_ms, query_ms = run_with_timeout(seconds, lambda: _ask(configured))
    except ERRORS as error:
        asked = ask_borrowed(configured.alias, read_both) if is_full(error) else None
        test = ConnectionTest(failure=failure_of(locate_timeout(error, configured), configured))
        return asked and asked[0], test, asked and asked[1]
    return server, ConnectionTest(connect_ms=connect_ms, query_ms=query_ms), now


def read_both(connection: Any) -> tuple[ServerFacts, Fleet]:
    return read_server(connection), read_fleet(connection)


def try_setup(configured: Configured, seconds: float, test: ConnectionTest) -> ConnectionTest:
    """Continue a test: set up a connection like Django, and time a checkout, within `seconds`.

    The test has its own pool and does not touch the project's.
    """
    try:
        checkout_ms = run_with_timeout(seconds, lambda: _connect_as_django(configured, seconds))
    except ERRORS as error:
        return replace(test, failure=failure_of(locate_timeout(error, configured), configured))
    return replace(test, checkout_ms=checkout_ms)


def _ask(configured: Configured) -> tuple[ServerFacts | Failure, Fleet | None, float, float]:
    """Return the server's facts, its sessions, and the ms to connect and to run a query."""
    wrapper = wrapper_of(configured)
    parameters = parameters_of(wrapper)
    began = perf_counter()
    connection = _open(wrapper, parameters, configured)
    try:
        connect_ms = _ms_since(began)
        connection.autocommit = True
        server: ServerFacts | Failure
        now = None
        try:
            server, now = read_both(connection)
        except wrapper.Database.Error as error:
            if connection.closed:
                raise  # later errors only say that it is closed
            server = failure_of(error, configured)
        began = perf_counter()
        connection.execute("SELECT 1").fetchone()
        query_ms = _ms_since(began)
        if isinstance(server, ServerFacts):
            server = replace(server, pooler=pooler_of(wrapper, connection, parameters))
        return server, now, connect_ms, query_ms
    finally:
        connection.close()


def _open(wrapper: Any, parameters: Mapping[str, Any], configured: Configured) -> Any:
    """Open a connection. After `EARLY` seconds, keep trying only if the server answers."""
    connect = wrapper.Database.connect
    if (configured.connect_timeout or CONNECT_TIMEOUT) <= EARLY:
        return connect(**parameters)
    began = perf_counter()
    try:
        return connect(**{**parameters, "connect_timeout": EARLY})
    except wrapper.Database.OperationalError:
        if perf_counter() - began < EARLY or is_silent(configured):
            raise
        return connect(**parameters)


def pooler_of(wrapper: Any, connection: Any, parameters: Mapping[str, Any]) -> PoolerFacts | None:
    """Return the pooler behind a connection in autocommit mode, made with these parameters."""

    # Of several hosts, use only this one: another may be down, or be another pooler.
    address = ("host", "hostaddr", "port")
    here = {name: getattr(connection.info, name) for name in address if name in parameters}

    def connect() -> Any:
        return wrapper.Database.connect(**{**parameters, **here})

    wanted: dict[str, str] = {}
    with suppress(ValueError):  # a form that only the server can parse
        wanted |= session_options(connection.info.options)
    if role := wrapper.settings_dict["OPTIONS"].get("assume_role"):
        wanted["role"] = role
    return read_pooler(connection, connect, wanted)


def _connect_as_django(configured: Configured, seconds: float) -> float | None:
    """Set up a connection as for a request's first query: role, time zone, isolation level.

    Returns the ms of a checkout from a one-connection pool like the alias's; None: no pool.
    """
    # The pool times out before `run_with_timeout`, so that its error says why.
    timeout = (seconds + seconds_to_connect(configured)) / 2
    parameters = {"min_size": 1, "max_size": 1, "timeout": timeout}
    with isolated_wrapper(configured.alias, parameters) as wrapper:
        with closing(wrapper):
            _connect(wrapper)
        if wrapper.pool is None:
            return None
        began = perf_counter()
        connection = wrapper.pool.getconn()
        checkout_ms = _ms_since(began)
        return_unchanged(wrapper.pool, connection)
        return checkout_ms


def _connect(wrapper: Any) -> None:
    try:
        wrapper.connect()
    except wrapper.Database.OperationalError:
        if wrapper.pool:  # the pool has retried itself
            raise
        # The previous connection may still have occupied the server's last slot.
        wrapper.close()
        sleep(NOTICE)
        wrapper.connect()


def _ms_since(began: float) -> float:
    return (perf_counter() - began) * 1000.0
