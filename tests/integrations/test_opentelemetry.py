"""The metrics of real pools, collected with OpenTelemetry's SDK."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from psycopg_pool import PoolTimeout

from abs_orm_app.facts.snapshot import EVICTIONS
from abs_orm_app.integrations import opentelemetry
from abs_orm_app.pool.housekeeping import TICK, observers
from abs_orm_app.pool.pool import new_pool_hooks
from abs_orm_app.pool.statistics import BOUNDS
from tests.support.databases import ask, pool_of
from tests.support.pools import evict_one_for_each_reason, give_back, opened, ours
from tests.support.processes import run
from tests.support.projects import database, entry
from tests.support.servers import Server, wait_until

SMALL = {"pool": {"min_size": 1, "max_size": 3, "timeout": 5.0}}
PREFIX = "db.client.connection."


@pytest.fixture(scope="module")
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    opentelemetry.instrument(provider)
    yield reader
    provider.shutdown()
    observers.remove(opentelemetry.pass_on)
    opentelemetry._histograms.clear()
    new_pool_hooks.remove(opentelemetry.keep_durations)


@pytest.fixture
def alias(server: Server, reader: InMemoryMetricReader, request: Any) -> Iterator[str]:
    """A different alias for each test, because the reader adds up everything it has seen."""
    with database(entry(server.conninfo, OPTIONS=SMALL), request.node.name) as alias:
        yield alias


def points(reader: InMemoryMetricReader, alias: str) -> dict[str, Any]:
    """The data points of one pool: `{"max": <point>, "count used": <point>, ...}`."""
    data = reader.get_metrics_data()
    found: dict[str, Any] = {}
    if data is None:
        return found
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            attributes = dict(point.attributes or {})
            if attributes.pop("db.client.connection.pool.name") == alias:
                found[
                    " ".join([metric.name.removeprefix(PREFIX), *map(str, attributes.values())])
                ] = point
    return found


def values(reader: InMemoryMetricReader, alias: str) -> dict[str, int]:
    return {
        name: point.value
        for name, point in points(reader, alias).items()
        if hasattr(point, "value")
    }


def test_the_instruments_are_those_of_the_semantic_conventions(
    reader: InMemoryMetricReader, alias: str
) -> None:
    pool_of(alias)
    data = reader.get_metrics_data()
    assert data is not None
    instruments = {
        metric.name.removeprefix(PREFIX): (metric.unit, getattr(metric.data, "is_monotonic", None))
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert (
        instruments.items()
        >= {
            "count": ("{connection}", False),
            "idle.min": ("{connection}", False),
            "idle.max": ("{connection}", False),
            "max": ("{connection}", False),
            "pending_requests": ("{request}", False),
            "timeouts": ("{timeout}", True),
            "create_time": ("s", None),
        }.items()
    )


def test_idle_and_used_connections_and_timeouts_are_counted(
    reader: InMemoryMetricReader, alias: str
) -> None:
    pool = pool_of(alias)
    taken = [pool.getconn() for _ in range(3)]
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.02)
    pool.return_unchanged(taken.pop())
    assert values(reader, alias) == {
        "count used": 2,
        "count idle": 1,
        "idle.min": 1,
        "idle.max": 3,
        "max": 3,
        "pending_requests": 0,
        "timeouts": 1,
        "abs_orm_app.connection.unused": 0,
        **{f"abs_orm_app.connection.evicted {reason}": 0 for reason in EVICTIONS},
    }
    give_back(pool, taken)


def test_evictions_are_counted_by_their_reason(
    reader: InMemoryMetricReader, alias: str, server: Server
) -> None:
    evict_one_for_each_reason(pool_of(alias), server)
    seen = values(reader, alias)
    prefix = "abs_orm_app.connection.evicted "
    evicted = {name.removeprefix(prefix): n for name, n in seen.items() if name.startswith(prefix)}
    assert evicted == {"stale": 1, "expired": 1, "misplaced": 1, "leaked": 1}


def test_pins_are_counted_by_their_reason(
    reader: InMemoryMetricReader, alias: str, unblocked: None
) -> None:
    wrapper = connections[alias]
    pinned, unused = "abs_orm_app.connection.pinned", "abs_orm_app.connection.unused"
    ask(wrapper, "SELECT 1")
    seen = values(reader, alias)
    assert seen[unused] == 1
    assert not any(name.startswith(pinned) for name in seen)
    ask(wrapper, "SET app.tenant = '7'")
    seen = values(reader, alias)
    assert (seen[f"{pinned} setting"], seen[unused]) == (1, 0)
    wrapper.close()


def test_each_duration_is_in_a_histogram_with_our_bounds(
    reader: InMemoryMetricReader, alias: str
) -> None:
    pool = pool_of(alias)
    for _ in range(3):
        with pool.connection():
            time.sleep(0.03)
    taken = [pool.getconn() for _ in range(3)]
    with pytest.raises(PoolTimeout):
        pool.getconn(timeout=0.02)
    give_back(pool, taken)
    seen = points(reader, alias)
    used, waited, created = (seen[f"{name}_time"] for name in ("use", "wait", "create"))
    assert used.count == 6
    assert used.max >= 0.03
    assert used.sum >= 0.09
    assert waited.count == pool.statistics.waits.distribution().count
    assert waited.max >= 0.02
    assert created.count == pool.statistics.creates.distribution().count
    assert tuple(used.explicit_bounds) == tuple(map(float, BOUNDS))
    assert list(used.bucket_counts) == pool.statistics.uses.counts


def test_durations_are_recorded_between_two_collections(
    reader: InMemoryMetricReader, alias: str
) -> None:
    pool = pool_of(alias)
    for _ in range(5):
        with pool.connection():
            pass
    kept = opentelemetry._kept[pool]["uses"]
    assert kept.maxlen == opentelemetry.KEPT
    wait_until(lambda: not kept, "a tick", 10 * TICK)
    assert points(reader, alias)["use_time"].count == 5


def test_a_closed_pool_has_recorded_its_last_durations(
    reader: InMemoryMetricReader, alias: str
) -> None:
    pool = pool_of(alias)
    with pool.connection():
        pass
    connections[alias].close_pool()  # type: ignore[attr-defined]
    assert points(reader, alias)["use_time"].count == 1


def test_a_pool_that_belongs_to_no_alias_is_left_out(
    reader: InMemoryMetricReader, server: Server
) -> None:
    with opened(ours, server.conninfo, min_size=1) as pool, pool.connection():
        pass
    assert points(reader, pool.name) == {}


def test_no_metric_shows_the_address_or_the_credentials(
    reader: InMemoryMetricReader, server: Server
) -> None:
    given = entry(server.conninfo, OPTIONS=SMALL, PASSWORD="do-not-tell")
    with database(given, "secretive") as alias:
        pool_of(alias)
        assert points(reader, alias)
        data = reader.get_metrics_data()
    assert data is not None
    for secret in ("do-not-tell", str(given["HOST"]), "postgres"):
        assert secret not in data.to_json()


def test_instrumenting_twice_counts_once(reader: InMemoryMetricReader, alias: str) -> None:
    opentelemetry.instrument(MeterProvider(metric_readers=[InMemoryMetricReader()]))
    pool = pool_of(alias)
    with pool.connection():
        pass
    assert points(reader, alias)["use_time"].count == 1


def use_pool_before_and_after_instrumenting() -> None:
    pool = pool_of("default")
    with pool.connection():
        pass
    reader = InMemoryMetricReader()
    opentelemetry.instrument(MeterProvider(metric_readers=[reader]))
    with pool.connection():
        pass
    print(points(reader, "default")["use_time"].count)  # noqa: T201


def test_a_pool_that_is_already_open_is_measured_from_the_instrumentation_on(
    server: Server,
) -> None:
    result = run(server, use_pool_before_and_after_instrumenting, DB_POOL_SIZE="1")
    assert result.errors == ""
    assert result.output.splitlines()[0] == "1"
