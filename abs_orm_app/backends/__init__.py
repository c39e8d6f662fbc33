"""Return the connection before something slow, or keep it after a change that the pool cannot see.

    from abs_orm_app.backends import pinned, release, released

    with released():
        answer = language_model.ask(question)

    with pinned():
        Report.objects.raw("SELECT 1 AS id FROM begin_report()")  # sets what the next query reads
        ...

They do nothing for an alias without a pool or with another engine, so code that uses them works
there, too. They also do nothing inside the transaction of Django's `TestCase`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

__all__ = ["pinned", "release", "released"]


def release(using: str | None = None) -> None:
    """Return this thread's connection to the pool now; the next query leases one again.

    `using`: an alias; the default one if None. The state of the session is lost (`SET`, temporary
    tables, advisory locks). An open cursor can still fetch the rows that it has received, but it
    cannot execute anything.

    Raises `TransactionManagementError` in an atomic block or another transaction, with autocommit
    turned off, in a `pinned()` block, and while a server-side cursor, `stream()` or `copy()` is
    open. Raises `SynchronousOnlyOperation` in async code, whose connections belong to other
    threads: use `await sync_to_async(release)()` there.
    """
    wrapper: Any = connections[using or DEFAULT_DB_ALIAS]
    if hasattr(wrapper, "release"):
        wrapper.release()


@contextmanager
def released(using: str | None = None) -> Iterator[None]:
    """Hold no connection in the block, unless it runs a query. Raises what `release` raises."""
    release(using)
    yield


@contextmanager
def pinned(using: str | None = None) -> Iterator[None]:
    """Keep one connection for the block, from its first query to its end.

    Use it for changes of the session that the pool cannot see, such as a database function that
    sets a variable or takes a session lock. The session counts as changed: in `transaction` mode
    the connection is returned at the end of the block, and in either mode it is cleaned before its
    next holder.
    """
    wrapper: Any = connections[using or DEFAULT_DB_ALIAS]
    if not hasattr(wrapper, "pinned"):
        yield
        return
    with wrapper.pinned():
        yield
