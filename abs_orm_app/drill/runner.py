"""Proves on its live database what the pool of an alias promises. `docs/drill.md` shows it.

    with closing(drill(configured)) as outcomes:
        for outcome in outcomes:
            print(outcome.verdict, outcome.promise, outcome.seen)

It works in pools of its own, built by the alias's engine from the alias's settings, and touches no
session but theirs, which it knows by their application_name.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Event
from time import perf_counter
from typing import Any

import psycopg
from django.db import connections
from psycopg.errors import InsufficientPrivilege

from abs_orm_app.capacity.budget import Limit, in_use, limits
from abs_orm_app.drill.steps import (
    AT_THE_END,
    IN_CONFIGURED_POOL,
    IN_POOL_OF_ONE,
    AnyConnection,
    AnyPool,
    Promise,
    Seen,
    Stage,
    Verdict,
    Watch,
)
from abs_orm_app.facts.connecting import MARGIN, errors_of, parameters_of, seconds_to_connect
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure, explain
from abs_orm_app.facts.isolated_wrapper import isolated_wrapper
from abs_orm_app.facts.pooler import is_pooled
from abs_orm_app.facts.secrets import scrub
from abs_orm_app.facts.server import ServerFacts, read_server
from abs_orm_app.facts.timeout import run_with_timeout

WATCHERS = 1  # connections that the drill has besides those of its pool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one promise."""

    name: str
    promise: str
    verdict: Verdict
    seen: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Drilled:
    """What the drill of one alias came to."""

    alias: str
    outcomes: tuple[Outcome, ...] = ()
    refused: Failure | None = None  # why there are no outcomes
    has_pool: bool = True

    @property
    def ok(self) -> bool | None:
        """True if no promise was broken; None for an alias without a pool, which gives none."""
        if not self.has_pool:
            return None
        return not self.refused and all(o.verdict != "broken" for o in self.outcomes)


class Refused(Exception):  # noqa: N818 - nothing went wrong
    """The drill cannot be done, or should not be; the failure says why, and what to do."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.cause} {failure.hint}")
        self.failure = failure


class NoPool(Refused):
    """There is no pool to drill."""


class _Lost(Exception):  # noqa: N818 - it ends the drill
    """The server does not answer any more: there is nothing to be seen."""


def drill(
    configured: Configured,
    *,
    take_most: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Generator[Outcome]:
    """Look at one promise after the other, in pools like that of the alias.

    take_most: take also more than half of the connections that the server has left for this role.
    announce: is told each promise before it is looked at.

    Raises Refused, but only before the first outcome. Closing the generator closes all connections.
    Meanwhile the pools log nothing: the faults are of the drill's own making.
    """
    _refuse_without_pool(configured)
    with suppress(_Lost), _silent_logs(), ExitStack() as stack:
        stage = partial(_stage, configured, stack.enter_context(_watch(configured, take_most)))
        with stage() as whole:
            yield from _look(IN_CONFIGURED_POOL, whole, announce)
        for promise in IN_POOL_OF_ONE:
            with stage(min_size=1, max_size=1) as one:
                yield from _look([promise], one, announce)
        yield from _look([AT_THE_END], whole, announce)


def _look(
    promises: Iterable[Promise], stage: Stage, announce: Callable[[str], None]
) -> Iterator[Outcome]:
    for promise in promises:
        announce(promise.text)
        lost = False
        began = perf_counter()
        try:
            seen = run_with_timeout(3 * stage.patience, partial(promise.look, stage))
        except InsufficientPrivilege as error:
            seen = Seen("skipped", f"this role may not: {explain(error).cause}")
        except (psycopg.Error, OSError) as error:
            seen = Seen("broken", explain(error).cause)
            lost = isinstance(error, TimeoutError) or stage.watch.control.closed
        yield Outcome(
            name=promise.name,
            promise=promise.text,
            verdict=seen.verdict,
            seen=scrub(seen.what),
            seconds=perf_counter() - began,
        )
        if lost:
            raise _Lost


@contextmanager
def _stage(configured: Configured, watch: Watch, **parameters: Any) -> Iterator[Stage]:
    """A pool as configured, but with other `parameters`; in the end all of it is closed."""
    with (
        ExitStack() as cleanup,
        _pool(configured, watch.application_name, **parameters) as pool,
    ):
        over = Event()
        cleanup.callback(over.set)
        yield Stage(configured=configured, watch=watch, pool=pool, cleanup=cleanup, over=over)


@contextmanager
def _pool(configured: Configured, name: str, **parameters: Any) -> Iterator[AnyPool]:
    # `max_waiting` is no promise, and would stand in the way of the others.
    parameters = {"max_waiting": 0, **parameters}
    with isolated_wrapper(configured.alias, parameters, application_name=name) as wrapper:
        yield wrapper.pool


# Before the first promise


def _refuse_without_pool(configured: Configured) -> None:
    if configured.error:
        hint = "Correct ENGINE, or install what it needs."
        raise Refused(Failure(cause=configured.error, hint=hint))
    if configured.vendor != "postgresql":
        raise NoPool(Failure(cause="It is not PostgreSQL: there is nothing to drill.", hint=""))
    if not configured.pools:
        cause = f"In {configured.mode} mode this process has no pool: there is nothing to drill."
        raise NoPool(Failure(cause=cause, hint="DB_POOL_MODE=pool makes one."))


@contextmanager
def _watch(configured: Configured, take_most: bool) -> Iterator[Watch]:
    """Connect to the server, and make sure that it can bear the drill. Raises Refused."""
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
            with _pool(configured, name) as pool:
                size, limit = pool.min_size, pool.max_size
            free = run_with_timeout(
                seconds, lambda: _connections_left(control, size, limit, take_most)
            )
        except errors_of(connections[configured.alias]) as error:
            raise Refused(explain(error, configured)) from error
        yield Watch(
            control=control, application_name=name, connect_seconds=connect_seconds, free=free
        )


def _connect(configured: Configured, name: str) -> AnyConnection:
    wrapper: Any = connections[configured.alias]
    parameters = parameters_of(wrapper)
    return psycopg.connect(**{**parameters, "application_name": name, "autocommit": True})


_POOLER = Failure(
    cause="A pooler stands between this process and the server: the connections that the drill "
    "would count and end are not its own.",
    hint="Point the alias at the server itself for the drill.",
)


def _connections_left(control: AnyConnection, size: int, limit: int, take_most: bool) -> int | None:
    """How many connections of the pool the server has room for; None if it does not say.

    Raises Refused if that is too little for a drill that others should not notice.
    """
    try:
        server = read_server(control)
    except psycopg.Error as error:
        if take_most:
            return None
        cause = f"The server does not say how many connections are free: {explain(error).cause}"
        raise Refused(Failure(cause=cause, hint=_ANYWAY)) from error
    free, why = min(_free(limit, server) for limit in limits(server))
    needed = limit + WATCHERS
    if needed > free / 2 and not take_most:
        raise Refused(
            Failure(
                cause=f"The drill needs {needed} connections ({size} + {limit - size}, and "
                f"{WATCHERS} to watch them); {free} are free ({why}), and it takes no more than "
                f"half of those: {free // 2}.",
                hint="Wait until fewer are in use, or set DB_POOL_SIZE and DB_MAX_OVERFLOW lower "
                f"for it. {_ANYWAY}",
            )
        )
    return free - WATCHERS


_ANYWAY = "With --yes, the drill takes what it needs."


def _free(limit: Limit, server: ServerFacts) -> tuple[int, str]:
    """How many connections one limit leaves, and the arithmetic."""
    used = in_use(limit, server)
    return max(limit.connections - used, 0), f"{limit.why}, and {used} are in use"


@contextmanager
def _silent_logs() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("abs_orm_app.pool", "psycopg.pool")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
