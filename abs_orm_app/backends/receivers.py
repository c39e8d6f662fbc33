"""Which receivers of `connection_created` query: each costs a round trip at each lease."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from django.dispatch import Signal

if TYPE_CHECKING:
    from abs_orm_app.backends.lease import Lease

_SEND = Signal.send.__code__
_seen: dict[str, set[str]] = {}  # by alias


def receivers_that_query(alias: str) -> tuple[str, ...]:
    """The receivers that have queried in this process, as in "shop.apps.set_timeout".

    Django's own are left out: they remember what they have asked.
    """
    return tuple(sorted(_seen.get(alias, ())))


def watch(lease: Lease) -> None:
    """Note who sends something to the server until `unwatch`, by whatever way of psycopg's."""
    connection: Any = lease.connection
    wait = connection.wait  # all that is sent goes through it

    def noting_wait(*args: Any, **kwargs: Any) -> Any:
        if lease.receiving:
            _note(connection)
        else:  # a receiver has released it
            unwatch(connection)
        return wait(*args, **kwargs)

    connection.wait = noting_wait


def unwatch(connection: Any) -> None:
    """End what `watch` began. `connection`: None if a receiver has released it."""
    if connection is not None:
        vars(connection).pop("wait", None)


def _note(connection: Any) -> None:
    pool = connection._pool
    if pool is not None and (name := _receiver()) is not None:
        _seen.setdefault(pool.name, set()).add(name)


def _receiver() -> str | None:
    """The function that the signal has called, on the stack of who calls this."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_back.f_code is _SEND:
            module: str = frame.f_globals.get("__name__") or "?"
            return None if module.startswith("django.") else f"{module}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return None
