"""`select.poll`, also where it is missing: eventlet removes it, and leaves `select.select`."""

from __future__ import annotations

import select
from typing import Any


class _Select:
    """What the pool uses of `select.poll`."""

    def __init__(self) -> None:
        self._events: dict[Any, int] = {}

    def register(self, fd: Any, events: int) -> None:
        self._events[fd] = events

    def poll(self, milliseconds: float) -> list[Any]:
        reads = [fd for fd, events in self._events.items() if events & select.POLLIN]
        writes = [fd for fd, events in self._events.items() if events & select.POLLOUT]
        readable, writable, _ = select.select(reads, writes, [], milliseconds / 1000)
        return readable + writable


Poller: Any = getattr(select, "poll", _Select)
