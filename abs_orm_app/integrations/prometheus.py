"""The pools' metrics for Prometheus, in whatever /metrics page prometheus_client makes.

Of itself where django_prometheus is one of INSTALLED_APPS; elsewhere call `register()` once, best
in an AppConfig's `ready`. `docs/metrics.md` says what each metric means.

One process is read when it is scraped. Of several (PROMETHEUS_MULTIPROC_DIR is set), each writes
its numbers to prometheus_client's files once a second; whichever is scraped adds them up.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from math import isinf
from typing import Any
from weakref import WeakKeyDictionary

import prometheus_client
from django.db import connections
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from abs_orm_app.facts.pools import snapshots
from abs_orm_app.pool.histogram import BOUNDS, Distribution
from abs_orm_app.pool.housekeeping import observers
from abs_orm_app.pool.pool import HardenedPool
from abs_orm_app.pool.snapshot import Snapshot, snapshot

# The field of a snapshot, what to call it (Prometheus adds _total to a counter), what it means.
GAUGES = (
    ("size", "django_db_pool_size", "Connections that are kept open (DB_POOL_SIZE)."),
    ("limit", "django_db_pool_limit", "Connections at most (DB_POOL_SIZE + DB_MAX_OVERFLOW)."),
    ("in_use", "django_db_pool_connections_in_use", "Connections that are checked out."),
    ("idle", "django_db_pool_connections_idle", "Connections that are idle."),
    ("opening", "django_db_pool_connections_opening", "Connections that are being opened."),
    ("waiting", "django_db_pool_requests_waiting", "Requests that wait for a connection."),
    (
        "unused",
        "django_db_pool_connections_unused",
        "Connections in use that nothing needs: kept until the request ends.",
    ),
)
PINNED = (
    "django_db_pool_connections_pinned",
    "Connections in use whose session is needed, by the reason.",
)
COUNTERS = (
    ("checkouts", "django_db_pool_checkouts", "Connections asked for."),
    ("queued", "django_db_pool_checkouts_queued", "Checkouts that found no idle connection."),
    ("timeouts", "django_db_pool_timeouts", "Checkouts that got no connection in time."),
    ("errors", "django_db_pool_errors", "Checkouts that got no connection, for any reason."),
    ("connects", "django_db_pool_connects", "Attempts to open a connection."),
    ("connect_errors", "django_db_pool_connect_errors", "Attempts to open one that failed."),
    ("stale", "django_db_pool_connections_stale", "Connections found closed or hung."),
    ("leaked", "django_db_pool_connections_leaked", "Connections that were never returned."),
    ("expired", "django_db_pool_connections_expired", "Connections closed because of their age."),
    (
        "misplaced",
        "django_db_pool_connections_misplaced",
        "Connections closed because of their server's role.",
    ),
    (
        "cleaned",
        "django_db_pool_connections_cleaned",
        "Connections cleaned because their session was changed.",
    ),
    ("lost", "django_db_pool_connections_lost", "Deprecated: the stale and the leaked ones."),
    ("returned_broken", "django_db_pool_connections_broken", "Connections returned broken."),
)
HISTOGRAMS = (
    ("waits", "django_db_pool_wait_seconds", "How long the queued checkouts waited."),
    ("uses", "django_db_pool_use_seconds", "How long connections were checked out."),
    ("creates", "django_db_pool_connect_seconds", "How long opening a connection took."),
)
LABELS = ("alias",)
REASON = ("alias", "reason")
NOTHING = Distribution((0,) * (len(BOUNDS) + 1), 0.0)


def register(registry: CollectorRegistry = prometheus_client.REGISTRY) -> None:
    """Add the metrics to what is scraped. Does nothing the second time."""
    if _in_several_processes():
        if publish not in observers:
            observers.append(publish)
    elif registry not in _registries:
        registry.register(PoolCollector())
        _registries.append(registry)


def _in_several_processes() -> bool:
    """Decide it as prometheus_client does."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ or "prometheus_multiproc_dir" in os.environ


# One process

_registries: list[CollectorRegistry] = []


class PoolCollector(Collector):
    """Reads the pools of this process when it is asked."""

    def collect(self) -> Iterator[Metric]:
        now = snapshots()
        for field, name, text in GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            for pool in now:
                gauge.add_metric([pool.alias], getattr(pool, field))
            yield gauge
        pinned = GaugeMetricFamily(*PINNED, labels=REASON)
        for pool in now:
            for reason, count in pool.pinned.items():
                pinned.add_metric([pool.alias, reason], count)
        yield pinned
        for field, name, text in COUNTERS:
            counter = CounterMetricFamily(name, text, labels=LABELS)
            for pool in now:
                counter.add_metric([pool.alias], getattr(pool, field))
            yield counter
        for field, name, text in HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=LABELS)
            for pool in now:
                times: Distribution = getattr(pool, field)
                buckets = [(_as_label(le), count) for le, count in times.cumulative()]
                histogram.add_metric([pool.alias], buckets, times.total)
            yield histogram


def _as_label(bound: float) -> str:
    return "+Inf" if isinf(bound) else str(float(bound))


# Several processes

_published: WeakKeyDictionary[HardenedPool, Snapshot] = WeakKeyDictionary()
_publishing = threading.Lock()

# prometheus_client has a lock of its own around its files. A child that is forked while this
# process writes would inherit it locked, and could never count anything again.
os.register_at_fork(
    before=_publishing.acquire,
    after_in_parent=_publishing.release,
    after_in_child=_publishing.release,
)


def publish(pool: HardenedPool) -> None:
    """Write what the pool is doing, and what it has done since the last time, to the files."""
    if pool.name not in connections:
        return  # such as the pool of a drill
    with _publishing:
        now, before = snapshot(pool), _published.get(pool)
        for field, name, text in GAUGES:
            # What a process has at its end is given back, and its file may outlive it.
            value = 0 if pool.closed else getattr(now, field)
            _gauge(name, text).labels(pool.name).set(value)
        for reason in {*now.pinned, *(before.pinned if before else ())}:
            value = 0 if pool.closed else now.pinned.get(reason, 0)
            _gauge(*PINNED, REASON).labels(pool.name, reason).set(value)
        for field, name, text in COUNTERS:
            more = _more(getattr(now, field), getattr(before, field, 0))
            _counter(name, text).labels(pool.name).inc(more)
        written: dict[str, Any] = {}
        for field, name, text in HISTOGRAMS:
            child = _histogram(name, text).labels(pool.name)
            known = getattr(before, field, NOTHING)
            written[field] = _observe(child, getattr(now, field), known)
        _published[pool] = replace(now, **written)


def _more(now: float, before: float) -> float:
    """How much a counter has grown; `pop_stats` sets it back to zero."""
    return now - before if now >= before else now


def _observe(
    child: prometheus_client.Histogram, now: Distribution, before: Distribution
) -> Distribution:
    """Add what a distribution has grown by, and return what has been added in all.

    prometheus_client takes one duration at a time.
    """
    total = before.total
    for seconds, count in now.since(before).durations():
        for _ in range(count):
            child.observe(seconds)
        total += seconds * count
    return Distribution(now.counts, total)


@cache
def _gauge(name: str, text: str, labels: tuple[str, ...] = LABELS) -> prometheus_client.Gauge:
    return prometheus_client.Gauge(name, text, labels, registry=None, multiprocess_mode="livesum")


@cache
def _counter(name: str, text: str) -> prometheus_client.Counter:
    return prometheus_client.Counter(name, text, LABELS, registry=None)


@cache
def _histogram(name: str, text: str) -> prometheus_client.Histogram:
    return prometheus_client.Histogram(name, text, LABELS, registry=None, buckets=BOUNDS)
