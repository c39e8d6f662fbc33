"""elastic-apm instruments psycopg.connect and the connections it gives."""

from __future__ import annotations

from tests.compat.case import Case, in_threads


def setup() -> None:
    import elasticapm

    elasticapm.instrument()


def check() -> None:
    import elasticapm
    from django.contrib.auth.models import Group

    client = elasticapm.Client(
        service_name="shop",
        transport_class="tests.compat.kept.Kept",
        central_config=False,
        metrics_interval="0ms",
        cloud_provider="none",
    )
    from tests.compat.kept import kept

    def request(number: int) -> None:
        client.begin_transaction("request")
        assert Group.objects.count() == 0
        client.end_transaction(f"request {number}")

    in_threads(10, request)
    spans = [data for kind, data in kept if kind == "span" and data["type"].startswith("db")]
    assert len(spans) >= 10, [(kind, data.get("type")) for kind, data in kept]


CASE = Case(
    packages=["elastic-apm"],
    tried="a `db` span for each of 10 queries in threads",
    setup=setup,
    check=check,
)
