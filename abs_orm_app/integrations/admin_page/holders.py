"""Which requests hold the connections of a pool, grouped by the view and the line of code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from abs_orm_app.backends.serving import Request
from abs_orm_app.pool.holders import Holder


@dataclass(frozen=True, kw_only=True)
class HolderGroup:
    """Connections that the same view took at the same line."""

    request: Request | None
    thread: str  # as in "thread MainThread"; "" if the request is known, or the threads are many
    where: str | None  # the line that took them, if DB_POOL_LEAK_SECONDS is set
    pins: tuple[tuple[str, int], ...]  # what needs how many of their sessions; "": not known
    longest: float  # seconds
    pids: tuple[int, ...]  # of the server's processes; the one held for longest first

    @property
    def count(self) -> int:
        return len(self.pids)


def group_holders(
    holders: Iterable[Holder], requests: dict[str, Request]
) -> tuple[HolderGroup, ...]:
    """Group by request and line; the largest group first. `requests`: by the thread's name."""
    members: dict[tuple[Request | str | None, str | None], list[Holder]] = {}
    for holder in sorted(holders, key=lambda holder: -holder.seconds):
        task = f"task {holder.thread}" if holder.is_task else None
        who = requests.get(holder.thread) or task
        members.setdefault((who, holder.where), []).append(holder)
    groups = [
        HolderGroup(
            request=who if isinstance(who, Request) else None,
            thread="" if isinstance(who, Request) else who or _thread_of(group),
            where=where,
            pins=tuple(Counter(map(_pin_in_words, group)).most_common()),
            longest=group[0].seconds,
            pids=tuple(holder.pid for holder in group),
        )
        for (who, where), group in members.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.count, -group.longest)))


def _thread_of(group: list[Holder]) -> str:
    return "" if len(group) > 1 else f"thread {group[0].thread}"


def _pin_in_words(holder: Holder) -> str:
    if holder.unused:
        return "nothing"
    return str(holder.pin) if holder.pin else ""
