"""Exports the pools' metrics to OpenTelemetry, by its semantic conventions for database clients.

    from abs_orm_app.integrations import opentelemetry

    opentelemetry.instrument()

Call it once per process, where the project sets its MeterProvider. See `docs/monitoring.md`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from operator import attrgetter
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

from abs_orm_app.facts.active import current_pools, snapshots
from abs_orm_app.facts.snapshot import COUNTERS, GAUGES, HISTOGRAMS, REASONS, Snapshot
from abs_orm_app.pool.housekeeping import observers
from abs_orm_app.pool.pool import HardenedPool, every_pool, new_pool_hooks
from abs_orm_app.pool.statistics import BOUNDS

Observe = Callable[[CallbackOptions], Iterable[Observation]]

KEPT = 10_000  # durations of each kind between two ticks of a pool; then the oldest are dropped
POOL_NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
REASON_OF = {"pinned": "abs_orm_app.pin.reason", "trouble": "abs_orm_app.trouble.reason"}
EVICTION_REASON = "abs_orm_app.eviction.reason"

_histograms: dict[str, Histogram] = {}  # by field of a snapshot
_kept: WeakKeyDictionary[HardenedPool, dict[str, deque[float]]] = WeakKeyDictionary()


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Create the instruments with this provider, or the global one. Only the first call counts.

    Durations are recorded once a second, and at each collection, but never during a checkout.
    """
    if _histograms:
        return
    meter = get_meter("abs_orm_app", meter_provider=meter_provider)
    for field, metric in HISTOGRAMS.items():
        for name in metric.otel:
            _histograms[field] = meter.create_histogram(
                name, metric.unit, metric.text, explicit_bucket_boundaries_advisory=BOUNDS
            )
    _make_observables(meter)
    new_pool_hooks.append(keep_durations)
    for pool in every_pool():
        keep_durations(pool)
    observers.append(pass_on)


def keep_durations(pool: HardenedPool) -> None:
    kept = _kept.setdefault(pool, {})
    for field in _histograms:
        durations = kept.setdefault(field, deque(maxlen=KEPT))
        getattr(pool.statistics, field).record = durations.append


def pass_on(pool: HardenedPool) -> None:
    if pool.name not in connections:
        return  # such as the pool of a drill
    for field, durations in _histograms.items():
        kept = _kept[pool][field]
        with suppress(IndexError):  # another thread may be recording them, too
            while kept:
                durations.record(kept.popleft(), {POOL_NAME: pool.name})


def _make_observables(meter: Meter) -> None:
    meter.create_observable_up_down_counter(
        "db.client.connection.count",
        # The SDK calls the observers before it collects the histograms.
        [_pass_on_all, _by(STATE, lambda now: {"idle": now.idle, "used": now.in_use})],
        "{connection}",
        "The number of connections that are currently in the state described by the attribute.",
    )
    for field, metric in REASONS.items():
        for name in metric.otel:
            meter.create_observable_up_down_counter(
                name, [_by(REASON_OF[field], attrgetter(field))], metric.unit, metric.text
            )
    meter.create_observable_counter(
        "abs_orm_app.connection.evicted",
        [_by(EVICTION_REASON, attrgetter("evicted"))],
        "{connection}",
        "The number of connections that the pool has replaced, by the reason.",
    )
    for make, metrics in (
        (meter.create_observable_up_down_counter, GAUGES),
        (meter.create_observable_counter, COUNTERS),
    ):
        for field, metric in metrics.items():
            for name in metric.otel:
                make(name, [_observer_of(field)], metric.unit, metric.text)


def _pass_on_all(_: CallbackOptions) -> Iterable[Observation]:
    for pool in current_pools().values():
        pass_on(pool)
    return ()


def _by(attribute: str, read: Callable[[Snapshot], Mapping[str, int]]) -> Observe:
    """Observe what `read` returns for each pool, by the values of an attribute."""

    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for now in snapshots():
            for value, count in read(now).items():
                yield Observation(count, {POOL_NAME: now.alias, attribute: value})

    return observe


def _observer_of(field: str) -> Observe:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for now in snapshots():
            yield Observation(getattr(now, field), {POOL_NAME: now.alias})

    return observe
