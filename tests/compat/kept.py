"""A transport of elastic-apm that sends nothing and keeps all."""

from __future__ import annotations

from typing import Any

from elasticapm.transport.base import Transport

kept: list[tuple[str, Any]] = []


class Kept(Transport):
    """Keeps what is queued."""

    def queue(self, event_type: str, data: Any, flush: bool = False) -> None:
        kept.append((event_type, data))

    def start_thread(self, pid: int | None = None) -> None:
        """Do without."""

    def close(self) -> None:
        """There is nothing to close."""
