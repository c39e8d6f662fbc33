"""Exports the pools' metrics to Prometheus, in any /metrics page that prometheus_client serves.

Automatic if django_prometheus is in INSTALLED_APPS; else call `register()` once, best in an
AppConfig's `ready`. `docs/monitoring.md` explains each metric.

A single process is read when it is scraped. With several (PROMETHEUS_MULTIPROC_DIR is set), each
writes its numbers to prometheus_client's files once a second; the one that is scraped adds them up.
"""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import prometheus_client
from django.db import connections
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from abs_orm_app.facts.active import snapshots
from abs_orm_app.facts.snapshot import COUNTERS, GAUGES, HISTOGRAMS, REASONS, Snapshot, snapshot
from abs_orm_app.pool.housekeeping import observers
from abs_orm_app.pool.pool import HardenedPool
from abs_orm_app.pool.statistics import BOUNDS, Distribution, Metric

LABELS = ("alias",)
REASON = ("alias", "reason")
NOTHING = Distribution((0,) * (len(BOUNDS) + 1), 0.0)


def register(registry: CollectorRegistry = prometheus_client.REGISTRY) -> None:
    """Add the metrics to the registry. Does nothing the second time."""
    if _in_several_processes():
        if publish not in observers:
            observers.append(publish)
    elif registry not in _registries:
        registry.register(PoolCollector())
        _registries.append(registry)


def _in_several_processes() -> bool:
    """Decide this like prometheus_client."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ or "prometheus_multiproc_dir" in os.environ


# One process

_registries: list[CollectorRegistry] = []


class PoolCollector(Collector):
    def collect(self) -> Iterator[prometheus_client.Metric]:
        now = snapshots()
        for family, metrics in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for field, metric in metrics.items():
                numbers = family(metric.name, metric.text, labels=LABELS)
                for pool in now:
                    numbers.add_metric([pool.alias], getattr(pool, field))
                yield numbers
        for field, metric in REASONS.items():
            reasons = GaugeMetricFamily(metric.name, metric.text, labels=REASON)
            for pool in now:
                for reason, count in getattr(pool, field).items():
                    reasons.add_metric([pool.alias, reason], count)
            yield reasons
        for field, metric in HISTOGRAMS.items():
            histogram = HistogramMetricFamily(metric.name, metric.text, labels=LABELS)
            for pool in now:
                times: Distribution = getattr(pool, field)
                buckets = [
                    (floatToGoString(le), count)  # type: ignore[no-untyped-call]
                    for le, count in times.cumulative()
                ]
                histogram.add_metric([pool.alias], buckets, times.total)
            yield histogram


# Several processes

_published: WeakKeyDictionary[HardenedPool, Snapshot] = WeakKeyDictionary()
_publishing = threading.Lock()

# prometheus_client has its own lock around its files. A child that is forked while this process
# writes would inherit the lock held, and could never count anything again.
os.register_at_fork(
    before=_publishing.acquire,
    after_in_parent=_publishing.release,
    after_in_child=_publishing.release,
)


def publish(pool: HardenedPool) -> None:
    """Write the pool's state, and what it has counted since the last call, to the files."""
    if pool.name not in connections:
        return  # such as the pool of a drill
    with _publishing:
        now, before = snapshot(pool), _published.get(pool)
        for field, metric in GAUGES.items():
            # At its end, a process frees its connections, but its file may outlive it.
            value = 0 if pool.closed else getattr(now, field)
            _gauge(metric).labels(pool.name).set(value)
        for field, metric in REASONS.items():
            counts = getattr(now, field)
            for reason in {*counts, *getattr(before, field, ())}:
                value = 0 if pool.closed else counts.get(reason, 0)
                _gauge(metric, REASON).labels(pool.name, reason).set(value)
        for field, metric in COUNTERS.items():
            more = getattr(now, field) - getattr(before, field, 0)
            _counter(metric).labels(pool.name).inc(more)
        written: dict[str, Any] = {}
        for field, metric in HISTOGRAMS.items():
            child = _histogram(metric).labels(pool.name)
            known = getattr(before, field, NOTHING)
            written[field] = _observe(child, getattr(now, field), known)
        _published[pool] = replace(now, **written)


def _observe(
    child: prometheus_client.Histogram, now: Distribution, before: Distribution
) -> Distribution:
    """Add the new durations, one at a time; return the total that has been added so far."""
    total = before.total
    for seconds, count in now.since(before).durations():
        for _ in range(count):
            child.observe(seconds)
        total += seconds * count
    return Distribution(now.counts, total)


@cache
def _gauge(metric: Metric, labels: tuple[str, ...] = LABELS) -> prometheus_client.Gauge:
    return prometheus_client.Gauge(
        metric.name, metric.text, labels, registry=None, multiprocess_mode="livesum"
    )


@cache
def _counter(metric: Metric) -> prometheus_client.Counter:
    return prometheus_client.Counter(metric.name, metric.text, LABELS, registry=None)


@cache
def _histogram(metric: Metric) -> prometheus_client.Histogram:
    return prometheus_client.Histogram(
        metric.name, metric.text, LABELS, registry=None, buckets=BOUNDS
    )
