"""What the metrics cost a checkout: `python -m benchmarks.metrics_cost [ROUNDS]`.

Each run is a process of its own with one pool, and the variants take turns. Shown are the medians
of the rounds, and of the differences to the run without metrics in the same round:

- the time of a checkout and return, for the one who does it;
- the processor time of the whole process for each of 1000 checkouts a second: with what the timer's
  thread does once a second, and one scrape or collection every two seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import monotonic, perf_counter, process_time, sleep

from tests.support.servers import Server

ROUNDS = 7
TO_REACH = 3.0  # microseconds more for a checkout
VARIANTS = {
    "none": "no metrics",
    "prometheus": "Prometheus, one process",
    "files": "Prometheus, several processes",
    "opentelemetry": "OpenTelemetry SDK",
}
SETTINGS = "abs_project.settings"
SECONDS = 4.0  # of a run at a steady pace
PACE = 1000  # checkouts a second
BATCH = 20  # checkouts between two looks at the clock
BATCHES = 2000
SCRAPE_INTERVAL = 2.0  # seconds
DEADLINE = 120.0  # seconds, for a run


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with Server() as server, tempfile.TemporaryDirectory() as directory:
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
        for _ in range(rounds):
            for name, runs in measured.items():
                runs.append(_run(name, server.url, directory))
    print(_table(measured))


def _run(variant: str, url: str, directory: str) -> tuple[float, float]:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("DB_")}
    environ |= {"DATABASE_URL": url, "DB_POOL_SIZE": "2", "DJANGO_SETTINGS_MODULE": SETTINGS}
    if variant == "files":
        environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    command = [sys.executable, "-c", f"from benchmarks.metrics_cost import work; work({variant!r})"]
    ran = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=True, timeout=DEADLINE
    )
    waited, spent = map(float, ran.stdout.split())
    return waited, spent


def work(variant: str) -> None:
    """In a process of its own: print both times, in microseconds."""
    import django
    from django.db import connections

    from benchmarks.clients import give_back

    django.setup()
    collect = _switch_on(variant)
    pool = connections["default"].pool  # type: ignore[attr-defined]
    pool.open(wait=True)

    give = give_back(pool)

    def checkout() -> None:
        give(pool.getconn())

    waited = _median_time(checkout)
    sleep(1.5)  # until the timer's thread has passed on all that
    spent = _processor_time(checkout, collect)
    print(waited * 1e6, spent * 1e6)


def _switch_on(variant: str) -> Callable[[], object]:
    """Have the metrics; returns what asks for them."""
    if variant in ("prometheus", "files"):
        import prometheus_client

        from abs_orm_app.integrations import prometheus

        prometheus.register()
        if variant == "prometheus":
            return prometheus_client.generate_latest
        return _scrape_files
    if variant == "opentelemetry":
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        from abs_orm_app.integrations import opentelemetry

        reader = InMemoryMetricReader()
        opentelemetry.instrument(MeterProvider(metric_readers=[reader]))
        return reader.get_metrics_data
    return lambda: None


def _scrape_files() -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _median_time(checkout: Callable[[], None]) -> float:
    times = []
    for _ in range(BATCHES):
        began = perf_counter()
        for _ in range(BATCH):
            checkout()
        times.append((perf_counter() - began) / BATCH)
    return median(times)


def _processor_time(checkout: Callable[[], None], collect: Callable[[], object]) -> float:
    """Seconds of processor time for a checkout, at a steady pace."""
    began, spent = monotonic(), process_time()
    collected, done = began, 0
    while (now := monotonic()) - began < SECONDS:
        while done < (now - began) * PACE:
            checkout()
            done += 1
        if now - collected >= SCRAPE_INTERVAL:
            collected = now
            collect()
        sleep(BATCH / PACE)
    return (process_time() - spent) / done


def _table(measured: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    lines = [
        "| metrics | a checkout takes | more | processor time | more |",
        "|---|---|---|---|---|",
    ]
    for name, runs in measured.items():
        cells = []
        for column in (0, 1):
            values = [run[column] for run in runs]
            more = [
                run[column] - bare[column] for run, bare in zip(runs, measured["none"], strict=True)
            ]
            cells += [f"{median(values):.1f} µs", f"{median(more):+.1f} µs"]
        lines.append(" | ".join([f"| {VARIANTS[name]}", *cells]) + " |")
    return "\n".join([*lines, "", f"To reach: less than {TO_REACH:g} µs more for a checkout."])


if __name__ == "__main__":
    main()
