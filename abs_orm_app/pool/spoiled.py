"""psycopg's connections, with hooks that notice an interrupted pipeline or transaction block.

An exception that does not come from the server, such as a time limit or Ctrl-C, may leave a
pipeline at any step: the server is in a transaction that the client believes to be over, or the
next statement is only queued. The transaction status does not show this, so the connection is
closed at once. `executemany` is a pipeline, too, whatever the class of its cursor. Outside of a
pipeline, the status is reliable.

psycopg counts the blocks of `transaction()` before it sends what begins or ends them. After an
exception in between, what the holder writes next would be in a transaction that is never committed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, get_origin
from weakref import ref

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from abs_orm_app.pool.closing import cancel_handle, spoil
from abs_orm_app.pool.entry import ENDED, ENTRY


@contextmanager
def judged(conn: Any, owner: Any = None) -> Iterator[None]:
    """Close the connection if an exception that does not come from the server leaves the block.

    `owner`: the pool's connection, if `conn` is another one that uses its handle.
    """
    entry = getattr(owner or conn, ENTRY, None)
    if entry is None:  # it is being opened
        yield
        return
    checkout = entry.checkout
    ended = checkout.get(ENDED)  # not None if the pool itself uses it
    before = sys.exception()  # handled around the block already: it interrupts nothing here
    is_inner = conn.pgconn.pipeline_status != PipelineStatus.OFF  # the outer one handles its end
    entry.spoiled += 1  # until it is known that nothing went wrong
    try:
        yield
    except BaseException as error:
        if entry.checkout is checkout and checkout.get(ENDED) is ended:
            if (is_inner or _is_at_its_end(conn)) and _is_of_psycopg(error, before):
                entry.spoiled -= 1
                entry.suspect()  # psycopg may have logged an interruption instead of raising it
            else:
                spoil(conn, entry)
        raise
    if entry.checkout is checkout and checkout.get(ENDED) is ended:
        entry.spoiled -= 1


@contextmanager
def balanced(conn: Any, owner: Any = None) -> Iterator[Rollback]:
    """Close the connection if the block is left in another transaction than it was entered in, or
    if its rollback was interrupted.

    `owner`: as for `judged`. Yields a `Rollback`, to be called with psycopg's block.
    """
    entry = getattr(owner or conn, ENTRY, None)
    handled, before, rollback = sys.exception(), _depth(conn), Rollback()
    if entry is None:
        yield rollback
        return
    checkout = entry.checkout
    ended = checkout.get(ENDED)  # not None if the pool itself uses it

    def end(error: BaseException | None) -> None:
        if entry.checkout is not checkout or checkout.get(ENDED) is not ended:
            return
        if not conn.closed and (
            rollback.is_half_done()
            or (error and _depth(conn) != before and not _is_of_psycopg(error, handled))
        ):
            spoil(conn, entry)
        entry.spoiled -= 1

    entry.spoiled += 1  # while psycopg counts the block: the next holder's would not commit
    try:
        yield rollback
    except BaseException as error:
        end(error)
        raise
    end(None)


class Rollback:
    """Sees whether the rollback of psycopg's block completes. If an exception interrupts it,
    psycopg only logs that, and the block's rows would be committed.
    """

    def __init__(self) -> None:
        self._block: Callable[[], Any] | None = None
        self._ended = False

    def __call__(self, block: Any) -> None:
        self._block = ref(block)
        block._commit_gen = partial(self._commit, type(block)._commit_gen)
        block._rollback_gen = partial(self._roll_back, type(block)._rollback_gen)

    def _commit(self, steps: Any) -> Any:
        self._ended = True  # no rollback is needed
        return (yield from steps(self._block and self._block()))

    def _roll_back(self, steps: Any, error: BaseException | None) -> Any:
        try:
            result = yield from steps(self._block and self._block(), error)
        except psycopg.Error as problem:
            self._ended = _is_of_psycopg(problem, error)
            raise
        self._ended = True
        return result

    def is_half_done(self) -> bool:
        return self._block is not None and not self._ended


def _depth(conn: Any) -> tuple[bool, int]:
    return conn.pgconn.transaction_status == TransactionStatus.IDLE, conn._num_transactions


def keep_cancel(conn: Any, owner: Any = None) -> None:
    """Remember how to cancel the statement of a connection that its holder is about to close.

    A server that sends nothing does not notice that its client is gone. `owner`: as for `judged`.
    """
    entry = getattr(owner or conn, ENTRY, None)
    if entry is not None and entry.in_use and entry.cancel is None:
        entry.cancel = cancel_handle(conn.pgconn)


@contextmanager
def _cancelling(conn: Any) -> Iterator[bool]:
    """Mark a connection during a cancel request, which may come from another thread. If its holder
    returns it meanwhile, it is closed: the request could cancel the next holder's statement. The
    mark stays if the request fails, because it may still arrive.

    Yields False if the connection was returned just before.
    """
    entry = getattr(conn, ENTRY, None)
    if entry is None or not entry.in_use:
        yield True
        return
    checkout = entry.checkout
    entry.spoiled += 1  # first: a return decides `checkout` and then checks this
    yield not checkout
    if entry.checkout is checkout:
        entry.spoiled -= 1


def _is_at_its_end(conn: Any) -> bool:
    """True if nothing is being executed on the connection."""
    pgconn = conn.pgconn
    if pgconn.pipeline_status != PipelineStatus.OFF:
        return False
    return bool(pgconn.transaction_status != TransactionStatus.ACTIVE)


def _is_of_psycopg(error: BaseException, before: BaseException | None) -> bool:
    """True if psycopg has raised the error, or Django in its place, and nothing interrupted them.

    `before`: was already being handled, so Python has made it the context of the first error.
    """
    cause: BaseException | None = error
    seen: set[int] = set()  # `raise error.__cause__` makes a cycle
    while cause is not None and cause is not before and id(cause) not in seen:
        seen.add(id(cause))
        translated = isinstance(cause.__cause__, psycopg.Error)
        if not (isinstance(cause, psycopg.Error) or translated):
            return False
        cause = cause.__cause__ or cause.__context__
    return True


class _GuardedConnection:
    @contextmanager
    def pipeline(self) -> Iterator[Any]:
        with judged(self), super().pipeline() as pipeline:  # type: ignore[misc]
            yield pipeline

    @contextmanager
    def _pipeline_nolock(self) -> Iterator[Any]:
        """Called by `executemany`; in older releases, `pipeline` is called instead."""
        with judged(self), super()._pipeline_nolock() as pipeline:  # type: ignore[misc]
            yield pipeline

    @contextmanager
    def transaction(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with balanced(self) as rollback, super().transaction(*args, **kwargs) as block:  # type: ignore[misc]
            rollback(block)
            yield block

    def tpc_begin(self, xid: Any) -> None:
        """Expire the connection: psycopg has no way back from a two-phase transaction that is not
        ended on it.
        """
        if (entry := getattr(self, ENTRY, None)) is not None:
            entry.expire()
        super().tpc_begin(xid)  # type: ignore[misc]

    def rollback(self) -> None:
        """It also drops prepared statements: if interrupted, psycopg's list of them is wrong."""
        with judged(self):
            super().rollback()  # type: ignore[misc]

    def cancel(self) -> None:
        with _cancelling(self) as is_held:
            if is_held:
                super().cancel()  # type: ignore[misc]

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        with _cancelling(self) as is_held:
            if is_held:
                super().cancel_safe(timeout=timeout)  # type: ignore[misc]

    def close(self) -> None:
        keep_cancel(self)
        super().close()  # type: ignore[misc]


def guarded(connection_class: Any) -> Any:
    """A subclass of psycopg's connection class whose pipelines and blocks are judged."""
    return _guarded(get_origin(connection_class) or connection_class)  # of `Connection[DictRow]`


@cache
def _guarded(base: type[Any]) -> type[Any]:
    if issubclass(base, _GuardedConnection):
        return base
    return type(base.__name__, (_GuardedConnection, base), {"__module__": base.__module__})
