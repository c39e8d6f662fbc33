"""The live state of one alias's pool in a process, and its holders; also as JSON."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from abs_orm_app.backends.serving import Request, requests_of
from abs_orm_app.facts.active import Active, current_pools, in_effect
from abs_orm_app.facts.snapshot import HISTOGRAMS, Snapshot, snapshot
from abs_orm_app.integrations.admin_page.history import Past, Second, history
from abs_orm_app.pool.holders import Holder
from abs_orm_app.pool.messages import Cause
from abs_orm_app.pool.placement import ServerInUse
from abs_orm_app.pool.statistics import Distribution


@dataclass(frozen=True, kw_only=True)
class HolderGroup:
    """Connections that the same view checked out at the same line."""

    request: Request | None
    thread: str  # such as "thread MainThread"; "" if the request is known, or for several threads
    where: str | None  # the line that checked them out, if DB_POOL_LEAK_SECONDS is set
    pins: tuple[tuple[str, int], ...]  # what needs their sessions, and how many; "": unknown
    longest: float  # seconds
    pids: tuple[int, ...]  # of the server's processes; longest held first

    @property
    def count(self) -> int:
        return len(self.pids)


@dataclass(frozen=True, kw_only=True)
class Live:
    now: Snapshot
    past: Past
    holders: tuple[HolderGroup, ...]
    active: Active


def live(alias: str) -> Live | None:
    """Describe this process's pool; None if nothing has used it yet, or it is not ours."""
    pool = current_pools().get(alias)
    if pool is None or pool.closed:
        return None
    now, holders = snapshot(pool), pool.holders()
    requests = requests_of({holder.thread for holder in holders})
    return Live(
        now=now,
        past=history(pool, now),
        holders=group_holders(holders, requests),
        active=in_effect(pool, checks=True),
    )


def to_json(value: Any) -> dict[str, Any]:
    """Convert a dataclass for `json.dump`, which calls this again for each nested one."""
    return {each.name: getattr(value, each.name) for each in fields(value)}


def from_json(told: Mapping[str, Any]) -> Live:
    """Reverse `to_json`. Raises KeyError or TypeError for the data of another version."""
    now, past = told["now"], told["past"]
    timed: dict[str, Any] = {name: _distribution(now[name]) for name in HISTOGRAMS}
    since: dict[str, Any] = {name: _distribution(past[name]) for name in HISTOGRAMS}
    cause, servers = now["cause"], tuple(ServerInUse(**each) for each in now["servers"])
    seconds = tuple(Second(**each) for each in past["seconds"])
    return Live(
        now=Snapshot(**now | timed | {"cause": cause and Cause(**cause), "servers": servers}),
        past=Past(**past | since | {"seconds": seconds}),
        holders=tuple(map(_group, told["holders"])),
        active=Active(**told["active"]),
    )


def _distribution(told: Mapping[str, Any]) -> Distribution:
    return Distribution(tuple(told["counts"]), told["total"])


def _group(told: Mapping[str, Any]) -> HolderGroup:
    request, pins = told["request"], tuple((what, count) for what, count in told["pins"])
    read = {"request": request and Request(**request), "pins": pins, "pids": tuple(told["pids"])}
    return HolderGroup(**{**told, **read})


def group_holders(
    holders: Iterable[Holder], requests: dict[str, Request]
) -> tuple[HolderGroup, ...]:
    """Group by request and line, largest group first. `requests`: by thread name."""
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
