"""The pools' metrics for OpenTelemetry, by its semantic conventions for database clients.

    from abs_orm_app.integrations import opentelemetry

    opentelemetry.instrument()

Once per process, where the project sets its MeterProvider. `docs/metrics.md` says more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from weakref import WeakKeyDictionary

from django.db import connections
from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    Meter,
    MeterProvider,
    Observation,
    get_meter,
)

from abs_orm_app.facts.pools import current_pools, snapshots
from abs_orm_app.pool.histogram import BOUNDS
from abs_orm_app.pool.housekeeping import observers
from abs_orm_app.pool.pool import HardenedPool, every_pool, new_pool_hooks

Observe = Callable[[CallbackOptions], Iterable[Observation]]

KEPT = 10_000  # durations of each kind between two ticks of a pool; of more, the last ones count
POOL_NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
PIN_REASON = "abs_orm_app.pin.reason"
EVICTION_REASON = "abs_orm_app.eviction.reason"

# What is measured of a snapshot: its field, the instrument, its unit, what it means.
NUMBERS = (
    ("size", "idle.min", "{connection}", "The minimum number of idle open connections allowed."),
    ("limit", "idle.max", "{connection}", "The maximum number of idle open connections allowed."),
    ("limit", "max", "{connection}", "The maximum number of open connections allowed."),
    (
        "waiting",
        "pending_requests",
        "{request}",
        "The number of current pending requests for an open connection.",
    ),
)
DURATIONS = (
    (
        "wait_times",
        "wait_time",
        "The time it took to obtain an open connection from the pool.",
    ),
    (
        "use_times",
        "use_time",
        "The time between borrowing a connection and returning it to the pool.",
    ),
    (
        "create_times",
        "create_time",
        "The time it took to create a new connection.",
    ),
)

_histograms: dict[str, Histogram] = {}  # by the field of the pool
_kept: WeakKeyDictionary[HardenedPool, dict[str, deque[float]]] = WeakKeyDictionary()


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Make the instruments with this provider, or with the global one. Only the first call counts.

    Durations are passed on once a second, and when they are collected, never at a checkout.
    """
    if _histograms:
        return
    meter = get_meter("abs_orm_app", meter_provider=meter_provider)
    for field, name, text in DURATIONS:
        _histograms[field] = meter.create_histogram(
            f"db.client.connection.{name}",
            unit="s",
            description=text,
            explicit_bucket_boundaries_advisory=BOUNDS,
        )
    _make_observables(meter)
    new_pool_hooks.append(keep_durations)
    for pool in every_pool():
        keep_durations(pool)
    observers.append(pass_on)


def keep_durations(pool: HardenedPool) -> None:
    """Keep each duration of this pool until it is passed on."""
    kept = _kept.setdefault(pool, {})
    for field in _histograms:
        durations = kept.setdefault(field, deque(maxlen=KEPT))
        getattr(pool, field).record = durations.append


def pass_on(pool: HardenedPool) -> None:
    """Record the durations that the pool has kept."""
    if pool.name not in connections:
        return  # such as the pool of a drill
    for field, durations in _histograms.items():
        kept = _kept[pool][field]
        with suppress(IndexError):  # another thread passes them on, too
            while kept:
                durations.record(kept.popleft(), {POOL_NAME: pool.name})


def _make_observables(meter: Meter) -> None:
    meter.create_observable_up_down_counter(
        "db.client.connection.count",
        [_observe_states],
        "{connection}",
        "The number of connections that are currently in the state described by the attribute.",
    )
    # What the conventions have no name for.
    meter.create_observable_up_down_counter(
        "abs_orm_app.connection.pinned",
        [_observe_pins],
        "{connection}",
        "The number of used connections whose session is needed, by the reason.",
    )
    meter.create_observable_up_down_counter(
        "abs_orm_app.connection.unused",
        [_observer_of("unused")],
        "{connection}",
        "The number of used connections that nothing needs: kept until the request ends.",
    )
    meter.create_observable_counter(
        "abs_orm_app.connection.evicted",
        [_observe_evictions],
        "{connection}",
        "The number of connections that the pool has replaced, by the reason.",
    )
    for field, name, unit, text in NUMBERS:
        meter.create_observable_up_down_counter(
            f"db.client.connection.{name}", [_observer_of(field)], unit, text
        )
    meter.create_observable_counter(
        "db.client.connection.timeouts",
        [_observer_of("timeouts")],
        "{timeout}",
        "The number of connection timeouts that have occurred trying to obtain a connection.",
    )


def _observe_states(_: CallbackOptions) -> Iterator[Observation]:
    # The SDK asks those who observe before it collects the histograms.
    for pool in current_pools().values():
        pass_on(pool)
    for now in snapshots():
        yield Observation(now.idle, {POOL_NAME: now.alias, STATE: "idle"})
        yield Observation(now.in_use, {POOL_NAME: now.alias, STATE: "used"})


def _observe_pins(_: CallbackOptions) -> Iterator[Observation]:
    for now in snapshots():
        for reason, count in now.pinned.items():
            yield Observation(count, {POOL_NAME: now.alias, PIN_REASON: reason})


def _observe_evictions(_: CallbackOptions) -> Iterator[Observation]:
    for now in snapshots():
        for reason, count in now.evicted.items():
            yield Observation(count, {POOL_NAME: now.alias, EVICTION_REASON: reason})


def _observer_of(field: str) -> Observe:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for now in snapshots():
            yield Observation(getattr(now, field), {POOL_NAME: now.alias})

    return observe
