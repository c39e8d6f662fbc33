"""OpenTelemetry replaces psycopg.connect and the class of its connections."""

from __future__ import annotations

from tests.compat.case import Case, in_threads


def setup() -> None:
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor

    PsycopgInstrumentor().instrument()


def check() -> None:
    from django.contrib.auth.models import Group
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    in_threads(10, lambda _: Group.objects.count())
    spans = [span for span in exporter.get_finished_spans() if span.name == "SELECT"]
    assert len(spans) == 10, [span.name for span in exporter.get_finished_spans()]


CASE = Case(
    packages=["opentelemetry-instrumentation-psycopg", "opentelemetry-sdk"],
    tried="a span for each of 10 queries in threads",
    note="Call `PsycopgInstrumentor().instrument()` before the first query.",
    setup=setup,
    check=check,
)
