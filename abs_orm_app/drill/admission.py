"""Decides whether a drill may run: it needs a pool, and a server with connections to spare."""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

import psycopg
from django.db import connections

from abs_orm_app.capacity.budget import limits
from abs_orm_app.checks.fixes import set_mode
from abs_orm_app.drill.stage import Control
from abs_orm_app.facts.connecting import (
    ERRORS,
    MARGIN,
    isolated_wrapper,
    parameters_of,
    seconds_to_connect,
)
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure, failure_of
from abs_orm_app.facts.pooler import is_pooled
from abs_orm_app.facts.server import read_server
from abs_orm_app.facts.timeout import run_with_timeout
from abs_orm_app.pool.entry import AnyConnection

CONTROL_CONNECTIONS = 1  # besides those of the drill's pool


class Refused(Exception):  # noqa: N818 - not an error of the program
    """The drill cannot or should not run; the failure says why, and what to do."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.cause} {failure.hint}")
        self.failure = failure


class NoPool(Refused):
    """There is no pool to drill."""


@contextmanager
def drill_wrapper(configured: Configured, name: str, **parameters: Any) -> Iterator[Any]:
    """Yield a wrapper with a pool like the alias's, except for `parameters`; closed afterwards."""
    # No promise depends on `max_waiting`, and it would refuse checkouts of the drill.
    parameters = {"max_waiting": 0, **parameters}
    with isolated_wrapper(configured.alias, parameters, application_name=name) as wrapper:
        yield wrapper


def refuse_without_pool(configured: Configured) -> None:
    if configured.error:
        hint = "Correct ENGINE, or install what it needs."
        raise Refused(Failure(cause=configured.error, hint=hint))
    if configured.vendor != "postgresql":
        raise NoPool(Failure(cause="It is not PostgreSQL: there is nothing to drill.", hint=""))
    if not configured.pools:
        cause = f"In {configured.mode} mode this process has no pool: there is nothing to drill."
        raise NoPool(
            Failure(cause=cause, hint=f"To turn the pool on, set {set_mode(configured, 'pool')}.")
        )


@contextmanager
def control_connection(configured: Configured, take_most: bool) -> Iterator[Control]:
    """Connect, and make sure that the server has enough connections left. Raises Refused."""
    name = f"abs_orm_app drill {os.getpid()} {secrets.token_hex(2)}"
    seconds = seconds_to_connect(configured) + MARGIN
    began = perf_counter()
    with ExitStack() as stack:
        try:
            control = run_with_timeout(seconds, lambda: _connect(configured, f"{name} control"))
            connect_seconds = perf_counter() - began
            stack.callback(control.close)
            if run_with_timeout(seconds, lambda: is_pooled(control)):
                raise Refused(_POOLER)
            with drill_wrapper(configured, name) as wrapper:
                size, limit = wrapper.pool.min_size, wrapper.pool.max_size
            free = run_with_timeout(
                seconds, lambda: _connections_left(control, size, limit, take_most)
            )
        except ERRORS as error:
            raise Refused(failure_of(error, configured)) from error
        yield Control(
            connection=control, application_name=name, connect_seconds=connect_seconds, free=free
        )


def _connect(configured: Configured, name: str) -> AnyConnection:
    wrapper: Any = connections[configured.alias]
    parameters = parameters_of(wrapper)
    return psycopg.connect(**{**parameters, "application_name": name, "autocommit": True})


_POOLER = Failure(
    cause="There is a pooler between this process and the server: the drill would count and end "
    "connections of other clients.",
    hint="Run the drill with the address of the server itself.",
)


def _connections_left(control: AnyConnection, size: int, limit: int, take_most: bool) -> int | None:
    """Return how many connections the server has left; None if it cannot be read.

    Raises Refused if the drill would take more than half of them.
    """
    try:
        server = read_server(control)
    except psycopg.Error as error:
        if take_most:
            return None
        cause = f"The server does not say how many connections are free: {failure_of(error).cause}"
        raise Refused(Failure(cause=cause, hint=_ANYWAY)) from error
    tightest = min(limits(server), key=lambda each: each.connections - each.used)
    free = max(tightest.connections - tightest.used, 0)
    needed = limit + CONTROL_CONNECTIONS
    if needed > free / 2 and not take_most:
        raise Refused(
            Failure(
                cause=f"The drill needs {needed} connections ({size} + {limit - size}, and "
                f"{CONTROL_CONNECTIONS} to count them), but {free} are free ({tightest.why}, and "
                f"{tightest.used} are in use), and it uses at most half of them: {free // 2}.",
                hint="Wait until fewer are in use, or lower the pool size and the overflow for the "
                f"drill. {_ANYWAY}",
            )
        )
    return free - CONTROL_CONNECTIONS


_ANYWAY = "With --yes, the drill uses as many as it needs."
