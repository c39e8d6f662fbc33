"""psycopg's connections, which tell the pool when a pipeline or a block was interrupted.

An exception that is not the server's, such as a time limit or Ctrl-C, may leave a pipeline at any
step: the server is in a transaction that the client believes ended, or the next statement is only
queued. The transaction status does not show it, so such a connection is closed at once.
`executemany` is a pipeline, too, of whatever class its cursor is. Outside of one, the status tells
the truth.

psycopg counts the blocks of `transaction()` before it sends what begins or ends them. If an
exception comes in between, what the holder writes next would be in a transaction that nobody
commits.
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
    """Close the connection if the block is left by an exception that is not the server's.

    `owner`: the pool's connection, if `conn` is another one around its handle.
    """
    entry = getattr(owner or conn, ENTRY, None)
    if entry is None:  # it is being opened
        yield
        return
    checkout = entry.checkout
    ended = checkout.get(ENDED)  # not None if the pool itself uses it
    before = sys.exception()  # being handled around the block: it interrupts nothing here
    is_inner = conn.pgconn.pipeline_status != PipelineStatus.OFF  # the outer one sees how it ends
    entry.spoiled += 1  # until it is known that nothing went wrong
    try:
        yield
    except BaseException as error:
        if entry.checkout is checkout and checkout.get(ENDED) is ended:
            if (is_inner or _is_at_its_end(conn)) and _is_of_psycopg(error, before):
                entry.spoiled -= 1
                entry.suspect()  # psycopg logs an interruption that comes during an error
            else:
                spoil(conn, entry)
        raise
    if entry.checkout is checkout and checkout.get(ENDED) is ended:
        entry.spoiled -= 1


@contextmanager
def balanced(conn: Any, owner: Any = None) -> Iterator[Rollback]:
    """Close the connection if the block is left in another transaction than it was entered in, or
    if its rollback was interrupted.

    `owner`: as for `judged`. Yields what must be called with psycopg's block.
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

    entry.spoiled += 1  # while psycopg counts it: the next holder's would not commit
    try:
        yield rollback
    except BaseException as error:
        end(error)
        raise
    end(None)


class Rollback:
    """Sees whether the rollback of psycopg's block comes to its end. If an exception interrupts
    it, psycopg only logs that, and the block's rows would be committed.
    """

    def __init__(self) -> None:
        self._block: Callable[[], Any] | None = None
        self._ended = False

    def __call__(self, block: Any) -> None:
        self._block = ref(block)
        block._commit_gen = partial(self._commit, type(block)._commit_gen)
        block._rollback_gen = partial(self._roll_back, type(block)._rollback_gen)

    def _commit(self, steps: Any) -> Any:
        self._ended = True  # there is none
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

    The server does not notice the end of a client that it does not write to. `owner`: as for
    `judged`.
    """
    entry = getattr(owner or conn, ENTRY, None)
    if entry is not None and entry.in_use and entry.cancel is None:
        entry.cancel = cancel_handle(conn.pgconn)


@contextmanager
def _cancelling(conn: Any) -> Iterator[bool]:
    """A request to cancel is under way, perhaps in another thread than its holder's: if that
    returns the connection meanwhile, it is closed, or the next holder's statement would be
    cancelled. One that fails may still arrive.

    False if the connection was returned just before.
    """
    entry = getattr(conn, ENTRY, None)
    if entry is None or not entry.in_use:
        yield True
        return
    checkout = entry.checkout
    entry.spoiled += 1  # first: a return decides `checkout`, and then looks
    yield not checkout
    if entry.checkout is checkout:
        entry.spoiled -= 1


def _is_at_its_end(conn: Any) -> bool:
    """True if nothing is under way on the connection."""
    pgconn = conn.pgconn
    if pgconn.pipeline_status != PipelineStatus.OFF:
        return False
    return bool(pgconn.transaction_status != TransactionStatus.ACTIVE)


def _is_of_psycopg(error: BaseException, before: BaseException | None) -> bool:
    """True if psycopg has raised it, or Django in its place, and nothing has interrupted that.

    `before`: was being handled already, so that Python has made it the context of the first one.
    """
    cause: BaseException | None = error
    seen: set[int] = set()  # `raise error.__cause__` makes a circle
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
        """`executemany` calls it; that of older releases calls `pipeline`."""
        with judged(self), super()._pipeline_nolock() as pipeline:  # type: ignore[misc]
            yield pipeline

    @contextmanager
    def transaction(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with balanced(self) as rollback, super().transaction(*args, **kwargs) as block:  # type: ignore[misc]
            rollback(block)
            yield block

    def tpc_begin(self, xid: Any) -> None:
        """psycopg has no way back from a two-phase transaction that is not ended on this
        connection.
        """
        if (entry := getattr(self, ENTRY, None)) is not None:
            entry.expire()
        super().tpc_begin(xid)  # type: ignore[misc]

    def rollback(self) -> None:
        """It also ends what psycopg has prepared: half-way, psycopg's list of that is wrong."""
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
