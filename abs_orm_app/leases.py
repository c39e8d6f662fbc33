"""Give the connection back before something slow, or keep it where it is needed unseen.

    from abs_orm_app.leases import pinned, release, released

    with released():
        answer = language_model.ask(question)

    with pinned():
        Report.objects.raw("SELECT 1 AS id FROM begin_report()")  # sets what the next one reads
        ...

On an alias without a pool, and on another engine, they change nothing, so that code which uses
them also runs there. Inside a transaction that Django's `TestCase` has opened they change nothing
either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

__all__ = ["pinned", "release", "released"]


def release(using: str | None = None) -> None:
    """Give the connection of this thread back to the pool now; the next query leases one again.

    `using`: an alias; the default one if None. What the session had is gone (`SET`, temporary
    tables, advisory locks). A cursor that is open can still fetch what it has read, and execute
    nothing more.

    Raises `TransactionManagementError` in an atomic block or another transaction, in a `pinned()`
    block, and while a server-side cursor is open.
    """
    wrapper: Any = connections[using or DEFAULT_DB_ALIAS]
    if hasattr(wrapper, "release"):
        wrapper.release()


@contextmanager
def released(using: str | None = None) -> Iterator[None]:
    """Hold no connection in the block, unless the block queries. Raises what `release` raises."""
    release(using)
    yield


@contextmanager
def pinned(using: str | None = None) -> Iterator[None]:
    """Keep one connection for the block, from its first query on, whatever is done in it.

    For what changes the session unseen: a function of the project's that sets a variable or takes
    a lock of the session. The session counts as changed then: in `transaction` mode the connection
    goes back at the end of the block, and in either mode it is cleaned before its next holder.
    """
    wrapper: Any = connections[using or DEFAULT_DB_ALIAS]
    if not hasattr(wrapper, "pinned"):
        yield
        return
    with wrapper.pinned():
        yield
