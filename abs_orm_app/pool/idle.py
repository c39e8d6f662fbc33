"""The idle connections; the one that was used last is at the right."""

from __future__ import annotations

from collections import deque
from typing import Any


class Idle(deque[Any]):
    """A deque of connections. Each method of deque is one atomic step for other threads."""

    __slots__ = ()

    def take(self, conn: Any) -> bool:
        """Take this connection; False if another thread has taken it."""
        try:
            self.remove(conn)
        except ValueError:
            return False
        return True

    def since(self) -> float | None:
        """When the connection at the left was used last (`monotonic`); None if none is idle."""
        try:
            since: float = self[0]._pool_entry.idle_since
        except IndexError:
            return None
        return since
