"""Calculates how many connections all processes may open, and how many the server allows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from abs_orm_app.config.texts import counted
from abs_orm_app.facts.databases import Configured
from abs_orm_app.facts.server import ServerFacts

Answers = Sequence[tuple[Configured, ServerFacts]]


@dataclass(frozen=True, kw_only=True)
class Demand:
    alias: str
    size: int
    overflow: int


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The most connections that a group of aliases can have."""

    group: tuple[str, ...]  # aliases with the same group share the limit
    connections: int
    why: str  # completes the sentence "..., but WHY"
    used: int = 0  # of these, in use now


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The demands on one limit."""

    processes: int
    demands: tuple[Demand, ...]
    limit: Limit
    others: int = 0  # connections of other applications now

    @property
    def room(self) -> int:
        return max(self.limit.connections - self.others, 0)

    @property
    def at_rest(self) -> int:
        return self.processes * sum(demand.size for demand in self.demands)

    @property
    def at_peak(self) -> int:
        return self.processes * sum(demand.size + demand.overflow for demand in self.demands)

    @property
    def per_process(self) -> int:
        """The most connections that each process may have so that all of them fit."""
        return self.limit.connections // self.processes

    @property
    def arithmetic(self) -> str:
        """Such as "2 processes x (20 + 10) for 'default' = 60 connections"."""
        parts = [f"({d.size} + {d.overflow}) for {d.alias!r}" for d in self.demands]
        total = parts[0] if len(parts) == 1 else f"({' + '.join(parts)})"
        return f"{counted(self.processes, 'process')} x {total} = {self.at_peak} connections"


@dataclass(frozen=True, kw_only=True)
class Load:
    """The requests of all processes, and the pool that each process needs for its share."""

    rps: float
    hold_ms: float  # for which a request holds its connection
    busy: float  # connections in use on average, in all processes together
    processes: int
    size: int
    overflow: int  # for twice the load
    fitting: int | None  # processes for which the server has room; None: it was not asked

    @classmethod
    def of(cls, rps: float, hold_ms: float, processes: int, server: ServerFacts | None) -> Self:
        """Apply the square root rule: add twice the root of the busy connections as headroom."""
        busy = rps * hold_ms / 1000

        def needed(times: int) -> int:
            share = times * busy / processes
            return max(math.ceil(share + 2 * math.sqrt(share)), 1)

        demand = Demand(alias="", size=needed(1), overflow=needed(2) - needed(1))
        rooms = [budget.room for budget in budgets([(demand, server)], 1)] if server else []
        return cls(
            rps=rps,
            hold_ms=hold_ms,
            busy=busy,
            processes=processes,
            size=demand.size,
            overflow=demand.overflow,
            fitting=min(rooms) // needed(2) if rooms else None,
        )


def largest_that_fit(budget: Budget) -> tuple[Demand, ...]:
    """Return the largest pools that fit, with the same number of processes.

    The pool size comes first: if the sizes fit, only the overflow is lowered; if not, there is no
    overflow, and the sizes share the room in proportion. Empty if there is not one connection for
    each pool.
    """
    each = budget.room // budget.processes
    sizes = [demand.size for demand in budget.demands]
    overflows = [demand.overflow for demand in budget.demands]
    if each < len(sizes):
        return ()
    if sum(sizes) > each:
        # One for each pool, and the rest in proportion.
        sizes = [1 + part for part in _share(each - len(sizes), [size - 1 for size in sizes])]
        overflows = [0 for _ in sizes]
    elif sum(sizes) + sum(overflows) > each:
        overflows = _share(each - sum(sizes), overflows)
    return tuple(
        replace(demand, size=size, overflow=overflow)
        for demand, size, overflow in zip(budget.demands, sizes, overflows, strict=True)
    )


def _share(total: int, weights: Sequence[int]) -> list[int]:
    """Split the total into whole numbers in proportion to the weights, by largest remainder."""
    exact = [total * weight / (sum(weights) or 1) for weight in weights]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] - exact[index])
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return parts


def limits(server: ServerFacts) -> list[Limit]:
    """Return the limits on the connections of this role to this database; each one applies."""
    found = [_limit_of_server(server)]
    if server.superuser:  # PostgreSQL exempts superusers from the two below
        return found
    for kind, name, may, most, used in (
        ("role", server.role, "may open", server.role_limit, server.used_by_role),
        ("database", server.database, "takes", server.database_limit, server.used_in_database),
    ):
        if most is not None:
            group = (server.identity, kind, name)
            why = f"{kind} {name!r} {may} {most} (its CONNECTION LIMIT)"
            found.append(Limit(group=group, connections=most, used=used, why=why))
    return found


def _limit_of_server(server: ServerFacts) -> Limit:
    kept_back = 0 if server.superuser else server.superuser_reserved
    if not (server.superuser or server.may_use_reserved):
        kept_back += server.reserved
    connections = server.max_connections - kept_back
    detail = f"max_connections {server.max_connections}"
    detail += f" - {kept_back} reserved" if kept_back else ", a superuser" * server.superuser
    return Limit(
        group=(server.identity,),
        connections=connections,
        used=server.used,
        why=f"this role may open {connections} ({detail})",
    )


def allowance(server: ServerFacts) -> Limit:
    return min(limits(server), key=lambda limit: limit.connections)


def budgets(demands: Iterable[tuple[Demand, ServerFacts]], processes: int) -> list[Budget]:
    """Return one budget per limit. If two roles see it differently, the lower value counts."""
    groups: dict[tuple[str, ...], list[tuple[Demand, ServerFacts, Limit]]] = {}
    for demand, server in demands:
        for limit in limits(server):
            groups.setdefault(limit.group, []).append((demand, server, limit))
    return [
        Budget(
            processes=processes,
            demands=tuple(demand for demand, _, _ in members),
            limit=min((limit for *_, limit in members), key=lambda limit: limit.connections),
            others=_others(members),
        )
        for members in groups.values()
    ]


def _others(members: Sequence[tuple[Demand, ServerFacts, Limit]]) -> int:
    """Count the connections under one limit that other applications have.

    The servers were queried one after the other, and connections may have closed meanwhile: of each
    number, the highest counts.
    """
    ours: dict[tuple[str, str], int] = {}
    for _, server, _ in members:
        whose = (server.role, server.database)
        ours[whose] = max(ours.get(whose, 0), server.used_by_project)
    return max(max(limit.used for *_, limit in members) - sum(ours.values()), 0)


def demands(answers: Answers) -> list[tuple[Demand, ServerFacts]]:
    return [  # an alias without a pool has no size
        (Demand(alias=database.alias, size=size, overflow=overflow), server)
        for database, server in answers
        if has_one_for_each(server)
        and isinstance(size := database.value("size"), int)
        and isinstance(overflow := database.value("overflow"), int)
    ]


def has_one_for_each(server: ServerFacts) -> bool:
    """Return True if the server has one connection for each of ours; a pooler may have fewer."""
    return server.pooler is None or server.pooler.pool_mode == "session"
