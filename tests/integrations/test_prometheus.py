"""The metrics for Prometheus, of one process and of several gunicorn workers."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
import pytest
from django.db import connections
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from psycopg_pool import PoolTimeout

from abs_orm_app.facts.snapshot import COUNTERS, GAUGES, HISTOGRAMS, REASONS
from abs_orm_app.integrations import prometheus
from tests.support.databases import ask, pool_of
from tests.support.pools import Call, evict_one_for_each_reason, give_back
from tests.support.processes import DEADLINE, GUNICORN, Web, backends, run, web_server
from tests.support.projects import database, entry
from tests.support.servers import Server, wait_until
from tests.support.system import needs_promtool
from tests.support.tasks import held_by_tasks

SMALL = {"pool": {"min_size": 1, "max_size": 3, "timeout": 5.0}}
SITE = {"DJANGO_SETTINGS_MODULE": "tests.support.watched.settings"}
LONG = "/slow/?ms=60000"  # until the test cancels the query
TEN_SLOTS = {"DB_POOL_SIZE": "2", "DB_MAX_OVERFLOW": "8", "DB_POOL_TIMEOUT": "10"}

Samples = dict[str, float]


def samples(exposition: str, alias: str) -> Samples:
    """The samples of one alias: `{"django_db_pool_limit": 3.0, ..._bucket<=0.1": 2.0}`."""
    return {
        sample.name + (f"<={bound}" if (bound := sample.labels.get("le")) else ""): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.labels.get("alias") == alias and sample.name.startswith("django_db_pool_")
    }


# One process


@contextmanager
def scraped(server: Server, alias: str = "other") -> Iterator[CollectorRegistry]:
    registry = CollectorRegistry(auto_describe=True)
    prometheus.register(registry)
    with database(entry(server.conninfo, OPTIONS=SMALL), alias):
        yield registry


def scrape(registry: CollectorRegistry, alias: str = "other") -> Samples:
    return samples(generate_latest(registry).decode(), alias)


def test_a_scrape_shows_the_state_of_the_pool(server: Server) -> None:
    with scraped(server) as registry:
        assert scrape(registry) == {}
        pool = pool_of("other")
        taken = [pool.getconn() for _ in range(3)]
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.03)
        pool.return_unchanged(taken.pop())
        seen = scrape(registry)
        give_back(pool, taken)
    assert seen["django_db_pool_size"] == 1
    assert seen["django_db_pool_limit"] == 3
    assert seen["django_db_pool_connections_in_use"] == 2
    assert seen["django_db_pool_connections_idle"] == 1
    assert seen["django_db_pool_connections_opening"] == 0
    assert seen["django_db_pool_requests_waiting"] == 0
    assert seen["django_db_pool_checkouts_total"] == 4
    assert seen["django_db_pool_timeouts_total"] == 1
    assert seen["django_db_pool_errors_total"] == 1
    assert seen["django_db_pool_connects_total"] == 3
    assert seen["django_db_pool_use_seconds_count"] == 1
    assert seen["django_db_pool_connect_seconds_bucket<=+Inf"] == 3
    assert seen["django_db_pool_wait_seconds_sum"] >= 0.03
    assert seen["django_db_pool_wait_seconds_count"] >= 1


def lines(exposition: str, alias: str) -> list[str]:
    """What is said of the pins of an alias, without `django_db_pool_connections_`."""
    return [
        line.removeprefix("django_db_pool_connections_").replace(f'alias="{alias}"', "")
        for line in exposition.splitlines()
        if line.startswith(("django_db_pool_connections_pinned{", UNUSED)) and f'"{alias}"' in line
    ]


UNUSED = "django_db_pool_connections_unused{"


def test_a_scrape_shows_what_pins_the_connections_and_how_many_are_not_needed(
    server: Server, unblocked: None
) -> None:
    with scraped(server) as registry:
        wrapper = connections["other"]

        def scraped_lines() -> list[str]:
            return lines(generate_latest(registry).decode(), "other")

        ask(wrapper, "SELECT 1")
        assert scraped_lines() == ["unused{} 1.0"]
        ask(wrapper, "SET app.tenant = '7'")
        assert scraped_lines() == ["unused{} 0.0", 'pinned{,reason="setting"} 1.0']
        wrapper.close()
        assert scraped_lines() == ["unused{} 0.0"]
        ask(wrapper, "BEGIN")
        assert scraped_lines() == ["unused{} 0.0", 'pinned{,reason="transaction"} 1.0']
        wait_until(
            lambda: scrape(registry)["django_db_pool_connections_cleaned_total"] == 1,
            "the cleaning",
        )


def test_a_scrape_counts_what_tasks_hold(server: Server, unblocked: None) -> None:
    with scraped(server) as registry:
        with held_by_tasks("other", "BEGIN", "SELECT 1"):
            shown = lines(generate_latest(registry).decode(), "other")
            seen = scrape(registry)
        assert shown == ["unused{} 0.0", 'pinned{,reason="transaction"} 1.0']
        assert seen["django_db_pool_connections_in_use"] == 2
        assert scrape(registry)["django_db_pool_use_seconds_count"] == 2


def publish_pins() -> None:
    """In a process of several: a reason that is gone is set back to zero."""
    prometheus.register()
    wrapper: Any = connections["default"]
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    for step in (lambda: ask(wrapper, "SET app.tenant = '7'"), wrapper.close):
        step()
        prometheus.publish(wrapper.pool)
        print(*lines(generate_latest(registry).decode(), "default"), sep=" / ")  # noqa: T201


def test_several_processes_show_the_sum_of_their_pins(server: Server, tmp_path: Path) -> None:
    result = run(server, publish_pins, PROMETHEUS_MULTIPROC_DIR=str(tmp_path), DB_POOL_SIZE="1")
    assert result.errors == ""
    assert result.output.splitlines()[:2] == [
        'unused{} 0.0 / pinned{,reason="setting"} 1.0',
        'unused{} 0.0 / pinned{,reason="setting"} 0.0',
    ]


def test_evictions_are_counted_by_their_reason(server: Server) -> None:
    with scraped(server) as registry:
        evict_one_for_each_reason(pool_of("other"), server)
        seen = scrape(registry)
    for reason in ("stale", "expired", "misplaced", "leaked"):
        assert seen[f"django_db_pool_connections_{reason}_total"] == 1


def test_registering_twice_changes_nothing(server: Server) -> None:
    with scraped(server) as registry:
        prometheus.register(registry)
        pool_of("other")
        exposition = generate_latest(registry).decode()
    assert exposition.count("django_db_pool_limit{") == 1


def test_no_metric_shows_the_address_or_the_credentials(server: Server) -> None:
    given = entry(server.conninfo, OPTIONS=SMALL, PASSWORD="do-not-tell")
    registry = CollectorRegistry(auto_describe=True)
    prometheus.register(registry)
    with database(given) as alias:
        connections[alias].pool.open()  # type: ignore[attr-defined]
        exposition = generate_latest(registry).decode()
    for secret in ("do-not-tell", str(given["HOST"]), str(given["PORT"]), "postgres"):
        assert secret not in exposition


def print_what_is_registered() -> None:
    exposition = generate_latest().decode()
    print("django_db_pool_limit" in exposition)  # noqa: T201


@pytest.mark.parametrize(
    ("settings", "there"),
    [("tests.support.watched.settings", True), ("abs_project.settings", False)],
)
def test_the_metrics_are_registered_with_django_prometheus_and_only_then(
    server: Server, settings: str, there: bool
) -> None:
    result = run(server, print_what_is_registered, DJANGO_SETTINGS_MODULE=settings)
    assert result.errors == ""
    assert result.output.splitlines()[0] == str(there)


# Several processes

CHILD_EXIT = """
from prometheus_client import multiprocess
def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""
PRELOAD = """
preload_app = True
def pre_fork(server, worker):
    from django.db import connection
    with connection.cursor() as cursor:
        cursor.execute("select 1")
    connection.close()
"""


@contextmanager
def two_workers(server: Server, directory: Path, config: str = CHILD_EXIT) -> Iterator[Web]:
    files = directory / "metrics"
    files.mkdir()
    (directory / "gunicorn.conf.py").write_text(config)
    options = ("--workers=2", "--worker-class=gthread", "--threads=12")
    with web_server(
        GUNICORN,
        server,
        *options,
        f"--config={directory / 'gunicorn.conf.py'}",
        PROMETHEUS_MULTIPROC_DIR=str(files),
        **SITE,
        **TEN_SLOTS,
    ) as web:
        yield web


def scrape_web(web: Web) -> Samples:
    status, _, exposition = web.get(["/metrics"])[0].partition("\n")
    assert status == "HTTP/1.1 200 OK"
    return samples(exposition, "default")


def wait_for(web: Web, expected: Samples) -> Samples:
    """Scrape until the scrape is as expected."""
    seen: Samples = {}

    def as_expected() -> bool:
        seen.clear()
        seen.update(scrape_web(web))
        return expected.items() <= seen.items()

    try:
        wait_until(as_expected, "the scrape", DEADLINE)
    except TimeoutError:
        assert {name: seen.get(name) for name in expected} == expected
    return seen


def use_both(web: Web, *, before_the_fork: int = 0) -> Samples:
    """Send requests until both workers have a pool, and scrape when all requests are counted.

    before_the_fork: checkouts of the master, which then has a pool as well.
    """
    limit = 10.0 * (2 + bool(before_the_fork))
    checkouts = before_the_fork + 1  # the first answer tells that the web server is ready

    def all_have_a_pool() -> bool:
        nonlocal checkouts
        checkouts += len(web.get(["/slow/?ms=50"] * 8))
        return scrape_web(web).get("django_db_pool_limit") == limit

    wait_until(all_have_a_pool, "a pool in each process", DEADLINE)
    counted = ("checkouts_total", "use_seconds_count", "use_seconds_bucket<=+Inf")
    return wait_for(web, {f"django_db_pool_{name}": float(checkouts) for name in counted})


def test_each_worker_shows_the_sum_of_all_live_workers(server: Server, tmp_path: Path) -> None:
    with two_workers(server, tmp_path) as web:
        before = use_both(web)
        busy = Call(web.get, [LONG] * 8)
        wait_for(web, {"django_db_pool_connections_in_use": 8.0})
        held = monotonic()
        sleep(1)
        held = monotonic() - held
        assert server.cancel() == 8
        busy.result(DEADLINE)
        counted = ("checkouts_total", "use_seconds_count", "use_seconds_bucket<=+Inf")
        expected = {
            name: before[name] + 8 for name in (f"django_db_pool_{field}" for field in counted)
        }
        for _ in range(2):
            after = wait_for(web, expected | {"django_db_pool_connections_in_use": 0.0})
        assert after["django_db_pool_connections_idle"] == len(backends(server))
        seconds = "django_db_pool_use_seconds_sum"
        assert 8 * held <= after[seconds] - before[seconds] <= 8 * busy.seconds
        psutil.Process(web.program.pid).children()[0].kill()  # gunicorn then calls child_exit
        left = wait_for(web, {"django_db_pool_limit": 10.0})
        assert left["django_db_pool_checkouts_total"] == after["django_db_pool_checkouts_total"]


def test_a_worker_that_ends_removes_its_connections_and_keeps_its_counters(
    server: Server, tmp_path: Path
) -> None:
    with two_workers(server, tmp_path, config="") as web:
        before = use_both(web)
        web.get(["/slow/?ms=1"] * 6)
        for worker in psutil.Process(web.program.pid).children():
            worker.terminate()
        wait_for(
            web,
            {
                "django_db_pool_checkouts_total": before["django_db_pool_checkouts_total"] + 6,
                "django_db_pool_limit": 0.0,
                "django_db_pool_connections_idle": 0.0,
            },
        )


def test_a_pool_opened_before_the_fork_counts_once(server: Server, tmp_path: Path) -> None:
    with two_workers(server, tmp_path, config=CHILD_EXIT + PRELOAD) as web:
        before = use_both(web, before_the_fork=2)
        web.get(["/slow/?ms=1"] * 20)
        name = "django_db_pool_checkouts_total"
        wait_for(web, {name: before[name] + 20})
        assert scrape_web(web)["django_db_pool_limit"] == 30


# Docs


DOCS = Path(__file__).resolve().parents[2] / "docs"


def read(file: str) -> str:
    return (DOCS / file).read_text()


def names() -> set[str]:
    """Every metric name that a query can use."""
    histograms = {metric.name for metric in HISTOGRAMS.values()}
    return (
        {metric.name for metric in (*GAUGES.values(), *REASONS.values())}
        | {f"{metric.name}_total" for metric in COUNTERS.values()}
        | histograms
        | {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    )


def test_the_docs_list_each_metric() -> None:
    listed = set(re.findall(r"^\| `(django_db_pool_\w+)`", read("monitoring.md"), re.MULTILINE))
    parts = ("_bucket", "_sum", "_count")
    assert listed == {name for name in names() if not name.endswith(parts)}
    table = read("monitoring.md").partition("| instrument |")[2].partition("\n\n")[0]
    instruments = {
        name
        for metrics in (GAUGES, REASONS, COUNTERS, HISTOGRAMS)
        for metric in metrics.values()
        for name in metric.otel
    }
    short = {name: f".{name.rpartition('.')[2]}" for name in instruments}
    assert [n for n in instruments if f"`{n}`" not in table and f"`{short[n]}`" not in table] == []


@pytest.mark.parametrize("file", ["monitoring.md", "alerts.yml", "grafana/connection-pools.json"])
def test_each_metric_that_the_docs_query_exists(file: str) -> None:
    used = set(re.findall(r"django_db_pool_\w+", read(file)))
    assert used
    assert used <= names()


def test_the_dashboard_is_json_and_each_panel_has_a_query() -> None:
    dashboard = json.loads(read("grafana/connection-pools.json"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) >= len(dashboard["panels"]) > 5
    assert all('{job=~"$job", alias=~"$alias"}' in query for query in queries)


def test_there_is_an_alert_for_each_of_the_five_questions() -> None:
    _, _, section = read("monitoring.md").partition("### The five questions")
    assert len(re.findall(r"- alert: (\w+)", read("alerts.yml"))) == 5
    assert section.partition("[alerts.yml]")[0].count("?") == 5


# The number of failed connects, every half minute.
ONE_FAILED = "0 0 1x10"
FAIL_FOR_FIVE_MINUTES = "0+2x10"


@needs_promtool
@pytest.mark.parametrize(
    ("failed", "minutes"),
    [(ONE_FAILED, set()), (FAIL_FOR_FIVE_MINUTES, {4, 5})],
    ids=["one failed", "five minutes"],
)
def test_the_alert_about_failed_connects_needs_more_than_one_failure(
    tmp_path: Path, failed: str, minutes: set[int]
) -> None:
    series = 'django_db_pool_connect_errors_total{job="shop", alias="default"}'
    firing = "ALERTS{alertname='CannotConnectToDatabase', alertstate='firing'}"
    test = {
        "rule_files": [str(DOCS / "alerts.yml")],
        "tests": [
            {
                "interval": "30s",
                "input_series": [{"series": series, "values": failed}],
                "promql_expr_test": [
                    {
                        "expr": f"count({firing}) or vector(0)",
                        "eval_time": f"{minute}m",
                        "exp_samples": [{"labels": "{}", "value": int(minute in minutes)}],
                    }
                    for minute in range(1, 6)
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(test))  # JSON is YAML
    ran = subprocess.run(
        ["promtool", "test", "rules", file],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
