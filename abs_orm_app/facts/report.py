"""What one alias is: as configured, as active here, as its server sees it, as it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from time import perf_counter, sleep
from typing import Any
from zoneinfo import ZoneInfoNotFoundError

from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DjangoError
from django.db import connections

from abs_orm_app.config.address import session_options
from abs_orm_app.facts.databases import NEVER, Configured
from abs_orm_app.facts.failure import Failure, explain
from abs_orm_app.facts.pooler import PoolerFacts, read_pooler
from abs_orm_app.facts.server import ServerFacts, read_server
from abs_orm_app.facts.timeout import within
from abs_orm_app.facts.trial_pool import trial

MARGIN = 5.0  # seconds for all that comes after connecting
CONNECT_TIMEOUT = 10.0  # seconds, where the settings give none
NOTICE = 0.5  # seconds in which a server notices that a session has ended


@dataclass(frozen=True, kw_only=True)
class Active:
    """The pool object of this process."""

    pool_class: str
    size: int
    overflow: int
    pre_ping: bool
    recycle: float  # seconds; -1: never
    timeout: float  # seconds
    opened: bool  # False: nothing has needed it yet in this process
    connections: int
    idle: int
    waiting: int

    def differs(self, configured: Configured) -> tuple[str, ...]:
        """The fields that are not as configured."""
        fields = ("size", "overflow", "pre_ping", "recycle", "timeout")
        return tuple(name for name in fields if getattr(self, name) != configured.value(name))


@dataclass(frozen=True, kw_only=True)
class ConnectionTest:
    """How the database answers; a time is None where it was not reached, or there is no pool."""

    connect_ms: float | None = None  # a new connection
    query_ms: float | None = None  # SELECT 1
    checkout_ms: float | None = None  # a connection from a pool that has one
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All about one alias. A Failure stands where there are no facts; None: does not apply."""

    configured: Configured
    active: Active | Failure | None
    server: ServerFacts | Failure | None
    test: ConnectionTest | None

    @property
    def failed(self) -> bool:
        """True if the alias cannot be used as it is configured."""
        test_failed = self.test is not None and self.test.failure is not None
        return test_failed or isinstance(self.active, Failure) or bool(self.configured.error)


def report(configured: Configured) -> Report:
    """Gather all about one alias. Ends by a deadline; what fails is part of the report.

    It takes one connection at a time, or two of a pooler; never one of the project's own pool.
    """
    pool, server, test = active(configured), None, None
    if configured.vendor == "postgresql":
        seconds = seconds_to_connect(configured) + MARGIN
        server, test = probe(configured, seconds)
        if not (test.failure or isinstance(pool, Failure)):
            test = _try_out(configured, seconds, test)
    return Report(configured=configured, active=pool, server=server, test=test)


def active(configured: Configured) -> Active | Failure | None:
    """Read the pool object of this process; None if the alias has no pool."""
    if not configured.pools:
        return None
    wrapper = _wrapper(configured)
    try:
        pool = wrapper.pool
    except errors_of(wrapper) as error:
        return explain(error, configured.secrets)
    stats = {} if pool.closed else pool.get_stats()
    return Active(
        pool_class=f"{type(pool).__module__}.{type(pool).__qualname__}",
        size=pool.min_size,
        overflow=pool.max_size - pool.min_size,
        # psycopg_pool keeps to itself whether it checks; Django lets it check where this is set.
        pre_ping=getattr(pool, "pre_ping", configured.health_checks),
        recycle=NEVER if pool.max_lifetime == math.inf else pool.max_lifetime,
        timeout=pool.timeout,
        opened=not pool.closed,
        connections=stats.get("pool_size", 0),
        idle=stats.get("pool_available", 0),
        waiting=stats.get("requests_waiting", 0),
    )


def probe(
    configured: Configured, seconds: float
) -> tuple[ServerFacts | Failure | None, ConnectionTest]:
    """Connect, ask the server about itself, and time a query; in time."""
    try:
        server, connect_ms, query_ms = within(seconds, lambda: _ask(configured))
    except errors_of(_wrapper(configured)) as error:
        return None, ConnectionTest(failure=explain(error, configured.secrets))
    return server, ConnectionTest(connect_ms=connect_ms, query_ms=query_ms)


def _try_out(configured: Configured, seconds: float, test: ConnectionTest) -> ConnectionTest:
    """Go on with a test: do what Django does to a new connection, and time a checkout; in time."""
    try:
        checkout_ms = within(seconds, lambda: _connect_as_django(configured, seconds))
    except errors_of(_wrapper(configured)) as error:
        return replace(test, failure=explain(error, configured.secrets))
    return replace(test, checkout_ms=checkout_ms)


def _wrapper(configured: Configured) -> Any:
    """Django's connection of this thread; what is asked of it here, only PostgreSQL's has."""
    return connections[configured.alias]


def parameters_of(wrapper: Any) -> dict[str, Any]:
    """What one more connection needs, with the password that is valid now."""
    parameters: dict[str, Any] = wrapper.get_connection_params()
    return parameters


def seconds_to_connect(configured: Configured) -> float:
    """How long one connection may take: each of several hosts has the connect_timeout to answer."""
    options = _wrapper(configured).settings_dict["OPTIONS"] or {}
    hosts = max(str(given).count(",") + 1 for given in (configured.host, options.get("hostaddr")))
    rounds = 2 if options.get("target_session_attrs") == "prefer-standby" else 1
    return rounds * hosts * (configured.connect_timeout or CONNECT_TIMEOUT)


def errors_of(wrapper: Any) -> tuple[type[Exception], ...]:
    """What a wrong setting or an unwilling server raises."""
    return (
        wrapper.Database.Error,
        DjangoError,
        ImproperlyConfigured,
        ImportError,
        OSError,
        TypeError,
        ValueError,
        ZoneInfoNotFoundError,
    )


def _ask(configured: Configured) -> tuple[ServerFacts | Failure, float, float]:
    """The server's facts, and how many ms connecting and a query took."""
    wrapper = _wrapper(configured)
    parameters = parameters_of(wrapper)
    began = perf_counter()
    connection = wrapper.Database.connect(**parameters)
    try:
        connect_ms = _ms_since(began)
        connection.autocommit = True
        server: ServerFacts | Failure
        try:
            server = read_server(connection)
        except wrapper.Database.Error as error:
            if connection.closed:
                raise  # what comes after that could only say that it is closed
            server = explain(error, configured.secrets)
        began = perf_counter()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
        query_ms = _ms_since(began)
        if isinstance(server, ServerFacts):
            server = replace(server, pooler=pooler_of(wrapper, connection, parameters))
        return server, connect_ms, query_ms
    finally:
        connection.close()


def pooler_of(wrapper: Any, connection: Any, parameters: Mapping[str, Any]) -> PoolerFacts | None:
    """What is at the other end of a connection in autocommit mode, made with these parameters."""

    # Of several hosts, the others may be away, or be another pooler.
    address = ("host", "hostaddr", "port")
    here = {name: getattr(connection.info, name) for name in address if name in parameters}

    def connect(**changes: Any) -> Any:
        return wrapper.Database.connect(**{**parameters, **here, **changes})

    wanted: dict[str, str] = {}
    with suppress(ValueError):  # not in a form that anybody else than the server can read
        wanted |= session_options(connection.info.options)
    if role := wrapper.settings_dict["OPTIONS"].get("assume_role"):
        wanted["role"] = role
    return read_pooler(connection, connect, wanted)


def _connect_as_django(configured: Configured, seconds: float) -> float | None:
    """Have a connection set up as at the first query of a request: role, time zone, isolation …

    Returns how many ms a checkout takes, from a pool like the alias's own, but of one connection;
    None without a pool.
    """
    # A pool that gives up before `within` does can say why.
    parameters = {"min_size": 1, "max_size": 1, "timeout": seconds - MARGIN / 2}
    with trial(configured.alias, parameters) as wrapper:
        with closing(wrapper):
            _connect(wrapper)
        if wrapper.pool is None:
            return None
        began = perf_counter()
        connection = wrapper.pool.getconn()
        checkout_ms = _ms_since(began)
        wrapper.pool.putconn(connection)
        return checkout_ms


def _connect(wrapper: Any) -> None:
    try:
        wrapper.connect()
    except wrapper.Database.OperationalError:
        if wrapper.pool:  # it has tried again itself
            raise
        # The connection before may still have had the last slot of the server.
        wrapper.close()
        sleep(NOTICE)
        wrapper.connect()


def _ms_since(began: float) -> float:
    return (perf_counter() - began) * 1000.0
