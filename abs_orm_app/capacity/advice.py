"""How large the pools should be for a load: facts in, advice out. `docs/sizing.md` explains it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from abs_orm_app.capacity.budget import Budget, Demand, budgets, largest_that_fit
from abs_orm_app.capacity.queueing import Load, Wait, smallest, wait
from abs_orm_app.environment import MOST_CONNECTIONS

if TYPE_CHECKING:
    from abs_orm_app.facts.server import ServerFacts
    from abs_orm_app.pool.snapshot import Snapshot

PEAK = 2  # times the load: what size and overflow together should serve
ROWS = 12  # of the table, at most


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Pools for one alias, and how they serve the load. All but `total` is for one process."""

    alias: str
    processes: int
    total: Load
    load: Load
    target: float  # seconds that 99 of 100 requests may wait

    size: int
    overflow: int
    rows: tuple[Wait, ...]  # for several numbers of connections
    peak: Wait  # with size and overflow, at PEAK times the load
    now: Wait | None  # with size and overflow as configured; None: there is no pool
    shared: Demand  # what one pool for all the processes would need

    budget: Budget | None  # the tightest, with the advised pools; None: the server was not asked
    fitting: Demand | None  # the largest pools that fit, where the advised ones do not
    words: tuple[str, ...]  # sentences


def measured(before: Snapshot, after: Snapshot, seconds: float) -> Load:
    """The load of a running pool, from what it counted between two snapshots.

    Raises ValueError, one sentence, if it served nothing meanwhile.
    """
    served = after.uses.count - before.uses.count
    held = after.uses.total - before.uses.total
    if served <= 0 or held <= 0 or seconds <= 0:
        raise ValueError(f"Pool {after.alias!r} served no request between the two snapshots.")
    return Load(rate=served / seconds, hold=held / served)


def check_load_is_feasible(total: Load) -> None:
    """Raise ValueError, one sentence, if no server can serve this load."""
    if PEAK * total.busy >= MOST_CONNECTIONS:
        raise ValueError(
            f"{total.rate:g} requests per second that hold a connection for"
            f" {total.hold * 1000:g} ms keep {total.busy:,.0f} connections busy, and twice that at"
            f" their peak; PostgreSQL cannot have more than {MOST_CONNECTIONS:,}."
        )


def advise(
    total: Load, target: float, processes: int, now: Demand, server: ServerFacts | None
) -> Advice:
    """Find the pools for a load that the processes share evenly.

    The pool size is what meets the target at this load; the overflow is what it takes beyond that
    to meet it at PEAK times the load. `now`: as configured; both are 0 where there is no pool.

    Raises ValueError, one sentence, if no server can serve this load.
    """
    check_load_is_feasible(total)
    load = total.times(1 / processes)
    advised, shared = _pools(now.alias, load, target), _pools(now.alias, total, target)
    most = now.size + now.overflow
    configured = wait(load, most) if most else None
    budget = _tightest(advised, server, processes) if server else None
    fitting = None
    if budget and budget.at_peak > budget.room:
        fitting = next(iter(largest_that_fit(budget)), None)
    return Advice(
        alias=now.alias,
        processes=processes,
        total=total,
        load=load,
        target=target,
        size=advised.size,
        overflow=advised.overflow,
        rows=tuple(wait(load, number) for number in _numbers(load, advised, configured)),
        peak=wait(load.times(PEAK), advised.size + advised.overflow),
        now=configured,
        shared=shared,
        budget=budget,
        fitting=fitting,
        words=(
            *_on_limit(load, budget, fitting, shared),
            *_on_configured(load, target, advised, now, configured),
            *_on_server(total),
        ),
    )


def _pools(alias: str, load: Load, target: float) -> Demand:
    size = smallest(load, target).connections
    most = smallest(load.times(PEAK), target).connections
    return Demand(alias=alias, size=size, overflow=most - size)


def _tightest(demand: Demand, server: ServerFacts, processes: int) -> Budget:
    return min(budgets([(demand, server)], processes), key=lambda budget: budget.room)


def _numbers(load: Load, advised: Demand, configured: Wait | None) -> list[int]:
    """The numbers of connections to show: from the fewest that can do it, in even steps."""
    least, most = math.floor(load.busy) + 1, advised.size + advised.overflow
    step = max(1, math.ceil((most - least + 1) / ROWS))
    shown = {*range(least, most, step), advised.size, most}
    if configured:
        shown.add(configured.connections)
    return sorted(shown)


def _on_configured(
    load: Load, target: float, advised: Demand, now: Demand, configured: Wait | None
) -> Iterator[str]:
    if configured is None:
        return
    pool = f"The configured {now.size} + {now.overflow}"
    at_peak = wait(load.times(PEAK), configured.connections)
    if configured.utilisation >= 1:
        yield (
            f"{pool} cannot serve this load: it keeps {load.busy:.3g} connections busy in each"
            " process on average, so requests queue until they time out."
        )
    elif at_peak.p99 <= target:
        more = configured.connections > advised.size + advised.overflow
        enough = "is more than enough" if more else "is enough"
        yield (
            f"{pool} {enough}, and a larger pool would not help: {load.busy:.3g} connections are"
            f" busy in each process on average, and {_most(configured)}."
            " If requests are slow, the cause is not a lack of connections."
        )
    elif configured.p99 <= target:
        yield (
            f"{pool} meets the target at this load, but not at {PEAK} times that: there,"
            f" {_most(at_peak)}."
        )
    else:
        yield f"With {pool[0].lower()}{pool[1:]}, 1 of 100 requests waits for more than " + (
            f"{_ms(configured.p99)}."
        )


def _on_limit(
    load: Load, budget: Budget | None, fitting: Demand | None, shared: Demand
) -> Iterator[str]:
    if budget is None:
        yield (
            "Whether the server has room for these pools is unknown: it did not answer, or there is"
            " a pooler in between."
        )
        return
    beside = f", and others have {budget.others} of these now" if budget.others else ""
    if budget.at_peak <= budget.room:
        yield f"It fits: {budget.arithmetic}; {budget.limit.why}{beside}."
        return
    yield f"It does not fit: {budget.arithmetic}, but {budget.limit.why}{beside}."
    if fitting is None:
        yield "There is less than one connection for each process."
    else:
        found = wait(load, fitting.size + fitting.overflow)
        yield f"The largest that fits is {fitting.size} + {fitting.overflow}: {_most(found)}."
    if budget.processes > 1 and shared.size + shared.overflow <= budget.room:
        yield (
            f"One pool for all {budget.processes} processes, in PgBouncer, would need only"
            f" {shared.size} + {shared.overflow}, since they do not have their peaks at the same"
            " time."
        )


def _on_server(total: Load) -> Iterator[str]:
    if total.busy >= 1:
        yield (
            f"In all processes together, {total.busy:.3g} connections are busy on average. While"
            " the server computes for them, it needs as many cores. With fewer cores, queries wait"
            " inside the server, and a larger pool makes that worse."
        )


def _most(found: Wait) -> str:
    if math.isinf(found.p99):
        return "requests queue until they time out"
    if not found.p99:
        return "99 of 100 requests do not wait"
    return f"99 of 100 requests wait for {_ms(found.p99)} at most"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
