"""Proves on a live database that an alias's pool keeps its promises (see docs/check_pool.md).

    with closing(drill(configured)) as outcomes:
        for outcome in outcomes:
            print(outcome.result, outcome.promise, outcome.seen)

The drill uses its own pools, which the alias's engine builds from the alias's settings. It affects
only their sessions, which it recognises by application_name.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Event
from time import perf_counter
from typing import Any

import psycopg
from psycopg.errors import InsufficientPrivilege

from abs_orm_app.drill.admission import control_connection, drill_wrapper, refuse_without_pool
from abs_orm_app.drill.stage import Control, Promise, Result, Seen, Stage
from abs_orm_app.drill.steps import AT_THE_END, IN_CONFIGURED_POOL, IN_POOL_OF_ONE
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.failure import Failure, failure_of
from abs_orm_app.facts.secrets import scrub
from abs_orm_app.facts.timeout import run_with_timeout


@dataclass(frozen=True, kw_only=True)
class Outcome:
    name: str
    promise: str
    result: Result
    seen: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Drilled:
    alias: str
    outcomes: tuple[Outcome, ...] = ()
    refused: Failure | None = None  # why the drill did not run
    has_pool: bool = True

    @property
    def ok(self) -> bool | None:
        """True if no promise was broken; None for an alias without a pool."""
        if not self.has_pool:
            return None
        return not self.refused and all(o.result != "broken" for o in self.outcomes)


class _ServerLost(Exception):  # noqa: N818 - it ends the drill
    """The server no longer answers, so the other promises cannot be tested."""


def drill(
    configured: Configured,
    *,
    take_most: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Generator[Outcome]:
    """Test one promise after another, in pools like that of the alias.

    take_most: use more than half of the connections that the server has left for this role.
    announce: called with the text of each promise before its test.

    Raises Refused, but only before the first outcome. Closing the generator closes all connections.
    The pools log nothing while the drill runs, because it causes their faults itself.
    """
    refuse_without_pool(configured)
    with suppress(_ServerLost), _silent_logs(), ExitStack() as stack:
        control = stack.enter_context(control_connection(configured, take_most))
        stage = partial(_stage, configured, control)
        with stage() as whole:
            yield from _test(IN_CONFIGURED_POOL, whole, announce)
        for promise in IN_POOL_OF_ONE:
            with stage(min_size=1, max_size=1) as one:
                yield from _test([promise], one, announce)
        yield from _test([AT_THE_END], whole, announce)


def _test(
    promises: Iterable[Promise], stage: Stage, announce: Callable[[str], None]
) -> Iterator[Outcome]:
    for promise in promises:
        announce(promise.text)
        lost = False
        began = perf_counter()
        try:
            seen = run_with_timeout(3 * stage.step_timeout, partial(promise.test, stage))
        except InsufficientPrivilege as error:
            seen = Seen("skipped", f"this role may not do it: {failure_of(error).cause}")
        except (psycopg.Error, OSError) as error:
            seen = Seen("broken", failure_of(error).cause)
            lost = isinstance(error, TimeoutError) or stage.control.connection.closed
        yield Outcome(
            name=promise.name,
            promise=promise.text,
            result=seen.result,
            seen=scrub(seen.what),
            seconds=perf_counter() - began,
        )
        if lost:
            raise _ServerLost


@contextmanager
def _stage(configured: Configured, control: Control, **parameters: Any) -> Iterator[Stage]:
    """Yield a stage with a pool like that of the alias, except for `parameters`."""
    with (
        ExitStack() as cleanup,
        drill_wrapper(configured, control.application_name, **parameters) as wrapper,
    ):
        over = Event()
        cleanup.callback(over.set)
        yield Stage(
            configured=configured,
            control=control,
            pool=wrapper.pool,
            wrapper=wrapper,
            cleanup=cleanup,
            over=over,
        )


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
